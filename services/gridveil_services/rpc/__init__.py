"""What the gRPC servers of all roles share."""

from gridveil_services.rpc import errors
from gridveil_services.rpc.behaviour import Patience
from gridveil_services.rpc.binding import Binding
from gridveil_services.rpc.call import Call
from gridveil_services.rpc.process import run_until_signal
from gridveil_services.rpc.roles import Identity, Role
from gridveil_services.rpc.server import Server, ServerOptions

__all__ = [
    "Binding",
    "Call",
    "Identity",
    "Patience",
    "Role",
    "Server",
    "ServerOptions",
    "errors",
    "run_until_signal",
]
