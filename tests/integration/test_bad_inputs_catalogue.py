"""Every row of docs/bad-inputs.md has its tests, and says what the code says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from gridveil.protocol.errors import Reason
from gridveil_services.rpc.errors import CODES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "bad-inputs.md").read_text("utf-8")
NOT_BUILT_HEADING = "## Not built yet"
LAST = 151
UNUSED = {45, 57, 65, 67, 74, *range(131, 141)}
"""Numbers that no row has."""

SERVICES = "integration/test_bad_inputs_services.py"
WIRE = "integration/test_bad_inputs_wire.py"
REPORTS = "integration/test_aggregator_bad_inputs.py"
REFUSALS = "integration/test_keyholder_refusals.py"
PRECHECK = "integration/test_keyholder_precheck.py"
IDENTITY = "integration/test_rpc_identity.py"
LIMITS = "integration/test_rpc_limits.py"
MESSAGES = "integration/test_rpc_messages.py"

TELEGRAMS = "unit/test_meters_p1.py"
FEEDERS = "unit/test_feeder.py"
SERIES = "unit/test_watchdog_series.py"
RECONCILED = "unit/test_cli_reconcile.py"
HOME = "integration/test_meters_gateway.py"
PUSHES = "unit/test_meters_dlms.py"
FILES = "unit/test_meters_files.py"
IMPORT = "unit/test_meters_import.py"

MALFORMED_CALL = f"{SERVICES}::test_a_malformed_call_of_any_method_is_refused_by_its_reason"
BAD_REPORT = f"{REPORTS}::test_a_bad_report_is_refused_and_changes_nothing"
WRONG_RELEASE = f"{REFUSALS}::test_a_wrong_release_is_refused_before_anything_is_decrypted"
DEFECT = f"{MESSAGES}::test_defect_is_internal_with_an_opaque_id_and_nothing_else"
BAD_PUSH = f"{PUSHES}::test_a_push_that_is_not_as_the_standard_says_is_named_and_nothing_is_read"
BAD_NEM12 = f"{FILES}::test_a_nem12_record_that_is_not_as_the_specification_says_is_named"
BAD_ESPI = f"{FILES}::test_a_green_button_file_that_is_not_as_the_standard_says_is_named"
BAD_CSV = f"{FILES}::test_a_csv_file_that_is_not_as_described_is_named_by_line"

TESTED: dict[int, tuple[str, ...]] = {
    1: (
        f"{SERVICES}::test_methods_of_other_services_are_not_there",
        f"{IDENTITY}::test_what_is_not_bound_is_unimplemented",
    ),
    2: (MALFORMED_CALL, f"{MESSAGES}::test_no_bytes_are_ever_a_defect_of_the_service"),
    3: (
        MALFORMED_CALL,
        "unit/test_rpc_parsing.py::test_every_truncation_is_refused_or_another_canonical_message",
    ),
    4: (MALFORMED_CALL,),
    5: (f"{SERVICES}::test_an_empty_message_is_refused_unless_it_means_something",),
    6: (MALFORMED_CALL,),
    7: (MALFORMED_CALL,),
    8: (
        MALFORMED_CALL,
        "unit/test_rpc_parsing.py::test_any_other_encoding_of_a_report_is_not_canonical",
        "unit/test_rpc_parsing.py::test_any_other_encoding_of_a_list_is_not_canonical",
    ),
    9: (
        MALFORMED_CALL,
        "unit/test_rpc_parsing.py::test_deep_nesting_is_refused",
        "unit/test_rpc_parsing.py::test_refusing_millions_of_elements_costs_no_memory",
    ),
    10: (MALFORMED_CALL, f"{MESSAGES}::test_message_above_the_limit_is_resource_exhausted"),
    11: (f"{MESSAGES}::test_compressed_message_is_unimplemented_and_never_unpacked",),
    12: (f"{MESSAGES}::test_compressed_message_is_unimplemented_and_never_unpacked",),
    13: (MALFORMED_CALL, f"{MESSAGES}::test_metadata_above_the_limit_is_resource_exhausted"),
    14: (DEFECT, f"{MESSAGES}::test_log_of_a_defect_names_the_place_but_no_local_variable"),
    15: (f"{MESSAGES}::test_answer_of_another_type_is_internal",),
    16: (
        f"{LIMITS}::TestDeadlines::test_call_without_a_deadline_is_handled_under_the_servers_cap",
        f"{LIMITS}::TestDeadlines::test_call_that_outlasts_the_cap_is_cut_off",
    ),
    17: (
        MALFORMED_CALL,
        f"{LIMITS}::TestDeadlines::test_too_little_time_is_refused_before_any_work",
    ),
    18: (
        f"{LIMITS}::TestDeadlines::test_handler_notices_that_the_deadline_has_passed",
        "integration/test_meter_client.py::test_a_lost_answer_is_settled_as_a_duplicate",
    ),
    19: (
        f"{LIMITS}::TestUnaryCalls"
        "::test_as_many_as_workers_and_backlog_are_taken_and_others_are_told_when_to_retry",
        f"{LIMITS}::TestStreams::test_streams_are_bounded_and_take_no_workers",
        f"{LIMITS}::test_flood_is_refused_and_the_server_goes_on",
    ),
    20: (f"{SERVICES}::test_a_report_whose_call_was_cancelled_counts_once_when_it_is_sent_again",),
    21: (f"{IDENTITY}::test_plaintext_on_the_tls_port_is_unavailable",),
    22: (
        f"{IDENTITY}::test_no_client_certificate_is_unavailable",
        f"{IDENTITY}::test_certificate_of_another_authority_is_unavailable",
        f"{IDENTITY}::test_certificate_outside_its_validity_is_unavailable",
    ),
    23: (f"{IDENTITY}::test_certificate_that_expires_while_its_connection_lives_is_refused",),
    24: (f"{IDENTITY}::test_certificate_without_exactly_one_name_of_the_city_is_a_bad_identity",),
    25: (
        f"{SERVICES}::test_every_other_role_is_turned_away_before_its_message_is_read",
        f"{IDENTITY}::test_wrong_role_is_refused_before_the_body_is_sent",
    ),
    26: (
        f"{SERVICES}::test_methods_of_other_services_are_not_there",
        f"{IDENTITY}::test_what_is_not_bound_is_unimplemented",
    ),
    27: (BAD_REPORT,),
    28: (BAD_REPORT,),
    29: (BAD_REPORT,),
    30: (
        BAD_REPORT,
        "adversary/test_meter_against_services.py::test_who_is_enrolled_cannot_be_found_out",
    ),
    31: (BAD_REPORT,),
    32: (BAD_REPORT,),
    33: (f"{SERVICES}::test_a_signature_of_another_algorithm_is_no_signature",),
    34: (BAD_REPORT,),
    36: (BAD_REPORT,),
    37: (BAD_REPORT, f"{REPORTS}::test_a_refusal_says_what_helps"),
    38: (BAD_REPORT, f"{REPORTS}::test_a_window_that_is_over_takes_nothing"),
    39: (f"{REPORTS}::test_a_window_that_is_over_takes_nothing",),
    40: (
        f"{REPORTS}::test_a_window_that_is_over_takes_nothing",
        "unit/test_aggregator_ingest.py::test_a_poisoned_window_gives_no_receipt_again",
    ),
    43: (f"{REPORTS}::test_duplicates_change_nothing_and_equivocations_only_their_record",),
    44: (f"{REPORTS}::test_duplicates_change_nothing_and_equivocations_only_their_record",),
    46: (f"{REPORTS}::test_duplicates_inside_a_batch_are_answered_one_by_one",),
    47: (f"{REPORTS}::test_a_bad_batch_is_refused_whole",),
    48: (
        f"{REPORTS}::test_in_a_batch_and_in_a_stream_the_answers_are_the_same",
        "unit/test_aggregator_ingest.py::test_a_bad_report_does_not_harm_its_neighbours",
    ),
    49: (BAD_REPORT, f"{REPORTS}::test_a_refusal_says_what_helps"),
    50: (BAD_REPORT,),
    51: (BAD_REPORT,),
    52: (BAD_REPORT,),
    53: (BAD_REPORT, f"{REPORTS}::test_a_refusal_says_what_helps"),
    54: (BAD_REPORT,),
    55: (BAD_REPORT,),
    56: (
        f"{REFUSALS}::test_what_does_not_open_is_refused_for_ever",
        "integration/test_keyholder_lanes.py"
        "::test_a_lane_that_does_not_open_is_left_out_and_counted",
    ),
    58: (f"{REPORTS}::test_a_ciphertext_whose_length_lies_is_malformed",),
    60: (
        "integration/test_aggregator_process.py"
        "::test_a_failing_disk_ends_it_and_the_next_start_has_what_was_acknowledged",
    ),
    61: (
        "unit/test_aggregator_ingest.py::test_a_full_store_refuses_the_calls_that_wait_for_it",
        "contract/test_store_sqlite.py::test_a_full_store_refuses_and_recovers_when_there_is_room",
    ),
    64: (
        "contract/test_store_sqlite.py::test_a_sealed_sum_that_is_not_whole_is_not_given_out",
        "integration/test_totals_integrity.py::test_a_log_that_goes_bad_stops_every_answer",
        f"{MESSAGES}::test_lost_integrity_is_told_and_logged",
    ),
    68: (WRONG_RELEASE, f"{REFUSALS}::test_a_close_must_name_the_release"),
    69: (
        WRONG_RELEASE,
        "unit/test_keyholder_policy.py"
        "::test_cohort_and_coverage_are_refused_alike_and_without_numbers",
    ),
    70: (WRONG_RELEASE, f"{REFUSALS}::test_a_withdrawn_meter_is_not_counted"),
    71: (
        "integration/test_keyholder_release.py"
        "::test_another_cohort_of_a_released_window_is_refused",
    ),
    72: (
        "integration/test_keyholder_release.py"
        "::test_the_same_release_again_is_answered_from_memory",
    ),
    73: (
        "integration/test_keyholder_service.py::test_extreme_headers_are_refused",
        "unit/test_keyholder_epochs.py::test_another_window_length_is_refused",
    ),
    75: (
        f"{REFUSALS}::test_what_does_not_open_is_refused_for_ever",
        f"{REFUSALS}::test_every_refusal_looks_the_same",
        "integration/test_keyholder_lanes.py::test_refusals_of_every_kind_look_the_same",
    ),
    76: (
        "integration/test_keyholder_budget.py"
        "::test_windows_of_a_destroyed_epoch_expire_by_their_header_alone",
        "integration/test_keyholder_noise.py"
        "::test_a_window_that_the_day_cannot_afford_is_refused_unopened",
        "adversary/test_noise.py::test_a_day_gives_as_many_totals_as_its_budget_affords",
    ),
    77: ("integration/test_keyholder_unseal.py::test_one_share_too_few_serves_nothing",),
    78: (
        "integration/test_log_witness.py"
        "::test_without_its_witness_a_key_holder_neither_starts_nor_claims",
        "unit/test_protocol_checkpoint.py"
        "::test_so_many_witnesses_as_the_policy_says_must_have_cosigned",
    ),
    79: (
        "integration/test_totals_service.py::test_every_window_without_an_outcome_looks_the_same",
    ),
    80: (
        "integration/test_totals_service.py::test_a_listing_that_makes_no_sense_is_refused",
        "integration/test_totals_service.py::test_the_first_page_is_bounded_without_asking",
    ),
    81: (
        "integration/test_totals_service.py::test_a_listing_that_makes_no_sense_is_refused",
        "integration/test_totals_service.py::test_a_page_token_belongs_to_its_caller",
    ),
    82: ("integration/test_log_follow.py::test_proofs_are_refused_for_what_the_log_does_not_have",),
    83: (
        "unit/test_witness.py::test_whoever_is_behind_or_ahead_is_told_the_size_that_was_seen",
        "integration/test_witness_http.py::test_every_request_gets_its_status",
    ),
    84: (
        MALFORMED_CALL,
        f"{MESSAGES}::test_second_message_of_a_unary_call_is_refused",
        f"{LIMITS}::TestUnaryCalls::test_sender_that_never_says_that_this_was_all_is_given_up",
        "integration/test_keyholder_release.py::test_messages_out_of_order_are_refused",
        f"{LIMITS}::TestStreams::test_sender_that_is_idle_too_long_is_given_up",
    ),
    85: (
        f"{LIMITS}::TestStreams::test_reader_that_does_not_read_is_given_up_and_stops_the_handler",
        f"{LIMITS}::TestUnaryCalls::test_answers_that_nobody_takes_are_bounded_and_given_up",
    ),
    86: (
        f"{WIRE}::test_a_flood_of_frames_ends_its_connection_and_no_other",
        f"{WIRE}::test_http_1_gets_no_answer_of_a_service",
    ),
    87: (
        f"{WIRE}::test_an_authority_of_another_service_opens_no_other_service",
        f"{IDENTITY}::test_client_refuses_a_server_of_another_role",
    ),
    88: (MALFORMED_CALL, f"{IDENTITY}::test_security_metadata_sent_twice_is_refused"),
    89: (
        f"{REPORTS}::test_a_bad_question_for_an_aggregate_is_refused",
        "unit/test_rpc_parsing.py::test_a_number_that_an_enum_does_not_name_is_unknown",
    ),
    90: (
        f"{SERVICES}::test_no_request_has_a_field_for_what_is_no_number",
        f"{SERVICES}::test_extreme_integers_are_refused_or_mean_what_they_say",
        BAD_REPORT,
        "integration/test_keyholder_service.py::test_extreme_headers_are_refused",
    ),
    35: ("unit/test_control_journal.py::test_nothing_is_signalled_before_anything_happened",),
    41: (
        "unit/test_control_history.py::test_what_is_no_day_is_refused",
        "unit/test_control_history.py::test_a_day_too_far_away_is_refused",
    ),
    42: ("integration/test_controller_service.py::test_a_time_before_all_time_is_refused",),
    91: (
        "integration/test_rpc_drain.py"
        "::test_call_in_progress_ends_and_new_ones_are_told_to_come_back",
    ),
    92: ("unit/test_aggregator_ingest.py::test_a_full_lane_takes_as_many_as_fit",),
    93: (
        "integration/test_aggregator_lifecycle.py"
        "::TestFollowing::test_reports_wait_until_the_roster_is_known",
        "integration/test_keyholder_restart.py"
        "::test_a_failed_log_stops_the_release_before_anything_is_decrypted",
    ),
    94: (f"{REFUSALS}::test_a_window_is_not_released_while_meters_may_report_it",),
    95: (
        "integration/test_keyholder_release.py"
        "::test_a_late_release_is_refused_before_the_expiry_is_logged",
    ),
    96: (WRONG_RELEASE,),
    97: (
        f"{REPORTS}::test_a_bad_question_for_an_aggregate_is_refused",
        "integration/test_aggregator_lifecycle.py"
        "::TestAggregates::test_an_aggregate_of_too_few_meters_is_not_given_out",
    ),
    98: (
        "unit/test_keyholder_roster.py::test_an_id_or_key_in_use_is_refused_and_nothing_changes",
        "integration/test_registrar.py::test_an_id_is_never_given_twice",
    ),
    100: (
        f"{PRECHECK}::test_of_entries_with_a_bad_one_among_them_those_before_it_are_held",
        "adversary/test_prechecks.py::test_entries_of_another_window_are_not_prechecked",
    ),
    101: (
        f"{PRECHECK}::test_entries_are_taken_while_reports_are_and_until_the_window_expires",
        "adversary/test_prechecks.py::test_a_settled_window_is_not_prechecked",
    ),
    102: ("adversary/test_prechecks.py::test_the_newest_windows_are_held_up_to_a_bound",),
    99: (
        f"{REPORTS}::test_a_bad_question_for_an_aggregate_is_refused",
        "integration/test_keyholder_service.py::test_withdrawals_are_all_or_nothing",
        "integration/test_rpc_drain.py::test_health_knows_each_service_and_no_other",
        "integration/test_totals_service.py::test_entries_that_are_not_published_are_not_found",
    ),
    103: (
        "integration/test_keyholder_lock.py"
        "::test_the_last_refusal_of_the_budget_locks_and_raises_the_alarm_once",
        "integration/test_keyholder_lock.py::test_a_locked_key_holder_names_no_time_to_come_back",
        "integration/test_keyholder_lock.py"
        "::test_a_release_that_came_in_while_it_was_locked_claims_nothing",
        "unit/test_keyholder_policy.py::test_while_locked_only_what_is_over_is_told_so",
    ),
    104: (
        f"{TELEGRAMS}::test_a_wrong_checksum_names_itself_and_the_next_telegram_works",
        f"{TELEGRAMS}::test_a_telegram_without_a_checksum_is_refused",
    ),
    105: (f"{TELEGRAMS}::test_a_telegram_without_end_is_dropped_within_its_bound",),
    106: (f"{TELEGRAMS}::test_a_telegram_that_is_cut_off_is_named",),
    107: (
        f"{TELEGRAMS}::test_a_line_that_is_not_as_the_standard_says_is_named_and_nothing_is_read",
    ),
    108: (f"{TELEGRAMS}::test_a_time_that_there_is_not_is_refused",),
    109: (
        f"{TELEGRAMS}::test_a_line_that_is_not_as_the_standard_says_is_named_and_nothing_is_read",
    ),
    141: (f"{FEEDERS}::test_what_is_no_such_csv_is_refused",),
    142: (f"{FEEDERS}::test_a_time_or_number_that_is_none_is_refused_by_its_line",),
    143: (
        f"{FEEDERS}::test_a_window_that_is_there_twice_is_refused",
        f"{FEEDERS}::test_a_file_above_its_bounds_is_refused",
    ),
    144: (f"{FEEDERS}::test_a_file_above_its_bounds_is_refused",),
    145: (
        f"{FEEDERS}::test_a_feeder_in_other_windows_is_refused",
        f"{RECONCILED}::test_a_feeder_off_the_citys_grid_is_refused",
    ),
    146: (
        f"{FEEDERS}::test_a_feeder_in_other_windows_is_refused",
        f"{RECONCILED}::test_a_feeder_of_hours_is_not_compared_with_quarter_hours",
    ),
    147: (f"{SERIES}::test_what_is_no_answer_to_a_range_query_is_refused",),
    148: (f"{SERIES}::test_what_is_no_answer_to_a_range_query_is_refused",),
    149: (
        f"{SERIES}::test_what_is_no_answer_to_a_range_query_is_refused",
        f"{SERIES}::test_a_sample_is_about_the_window_that_ends_with_it",
    ),
    150: (f"{SERIES}::test_what_is_no_answer_to_a_range_query_is_refused",),
    151: (f"{SERIES}::test_a_file_above_its_bound_is_refused",),
    110: (
        f"{HOME}::test_a_live_meter_whose_clock_is_wrong_is_not_believed",
        f"{HOME}::test_a_push_that_was_held_back_is_refused_by_its_clock_and_its_counter_counts_for_nothing",
    ),
    111: (
        f"{PUSHES}::test_a_wrong_checksum_names_itself_and_the_next_push_works",
        f"{PUSHES}::test_no_flipped_bit_of_a_frame_goes_unnoticed",
    ),
    112: (
        f"{PUSHES}::test_segments_without_end_are_dropped_within_their_bound",
        f"{PUSHES}::test_a_wrapper_that_is_empty_or_too_long_is_refused_before_it_is_kept",
    ),
    113: (
        f"{PUSHES}::test_a_frame_that_is_cut_off_is_named_and_the_next_one_works",
        f"{PUSHES}::test_a_push_whose_last_segment_never_came_is_named",
    ),
    114: (f"{PUSHES}::test_a_frame_without_the_header_of_a_meter_is_named",),
    115: (f"{PUSHES}::test_what_is_no_data_notification_is_named",),
    116: (
        f"{PUSHES}::test_what_its_keys_have_not_protected_is_refused",
        f"{PUSHES}::test_a_protected_push_without_keys_is_refused",
    ),
    117: (
        f"{HOME}::test_a_push_that_was_there_is_refused_also_over_a_restart_and_the_next_one_counts",
    ),
    118: (BAD_PUSH, f"{PUSHES}::test_no_bytes_of_a_push_make_another_error_than_a_typed_one"),
    119: (
        BAD_PUSH,
        f"{PUSHES}::test_codes_and_values_in_turn_need_the_unit_to_be_given",
    ),
    120: (BAD_PUSH, f"{PUSHES}::test_a_local_time_that_is_not_one_moment_is_refused"),
    121: (BAD_NEM12, BAD_ESPI, BAD_CSV, f"{FILES}::test_noise_is_no_file"),
    122: (f"{FILES}::test_xml_with_a_document_type_is_not_read",),
    123: (
        f"{IMPORT}::test_a_file_longer_than_is_read_is_refused",
        f"{FILES}::test_deep_xml_is_refused_before_it_is_kept",
    ),
    124: (BAD_NEM12, BAD_CSV),
    125: (BAD_ESPI,),
    126: (BAD_NEM12, BAD_ESPI, BAD_CSV),
    127: (
        BAD_NEM12,
        BAD_CSV,
        f"{FILES}::test_a_day_of_varying_quality_that_is_not_covered_is_refused",
        f"{FILES}::test_a_400_record_that_is_none_is_refused",
    ),
    128: (BAD_NEM12, BAD_ESPI, f"{FILES}::test_a_time_that_is_not_one_moment_is_refused"),
    129: (
        "unit/test_meters_validation.py::test_intervals_that_do_not_make_up_windows_are_refused",
    ),
    130: (
        BAD_CSV,
        BAD_NEM12,
        "unit/test_meters_validation.py::test_a_channel_that_the_file_has_not_is_named_as_such",
    ),
}
"""The tests of each row, by file and name."""

NOT_BUILT = {59, 62, 63, 66}
"""Rows of what does not exist in this version: several aggregators, quotas of meters."""


class Row(NamedTuple):
    """A row of the document."""

    number: int
    statuses: list[str]
    reasons: list[str]


def rows(text: str) -> list[Row]:
    """The rows of the tables in a text, each with status and reason."""
    return [
        Row(int(number), listed(status), listed(reason))
        for number, status, reason in re.findall(
            r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|.*\|$", text, re.M
        )
    ]


def listed(cell: str) -> list[str]:
    """What a cell lists; nothing for a dash."""
    return [] if cell == "–" else cell.split(", ")


BUILT, _, PLANNED = TEXT.partition(NOT_BUILT_HEADING)
ROWS = rows(BUILT)


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests of a file, those of a class as ``Class::name``."""
    tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = (item for item in node.body if isinstance(item, ast.FunctionDef))
            found |= {f"{node.name}::{item.name}" for item in inner}
    return frozenset(found)


def test_every_row_is_tested_or_known_not_to_be_built() -> None:
    assert not TESTED.keys() & NOT_BUILT
    assert not (TESTED.keys() | NOT_BUILT) & UNUSED
    assert TESTED.keys() | NOT_BUILT | UNUSED == set(range(1, LAST + 1))


def test_the_document_has_these_rows_and_each_once() -> None:
    numbers = [row.number for row in ROWS]
    assert sorted(numbers) == sorted(TESTED)
    planned = [int(number) for number in re.findall(r"^\| (\d+) \|", PLANNED, re.M)]
    assert sorted(planned) == sorted(NOT_BUILT)


@pytest.mark.parametrize("number", TESTED)
def test_the_tests_of_a_row_exist(number: int) -> None:
    assert TESTED[number]
    for named in TESTED[number]:
        path, _, name = named.partition("::")
        assert name in names_in(path), named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_says_what_the_code_says(row: Row) -> None:
    assert set(row.statuses) <= {code.name for code in grpc.StatusCode}
    assert "UNKNOWN" not in row.statuses
    for reason in row.reasons:
        assert CODES[Reason(reason)].name in row.statuses


def test_every_reason_that_a_caller_may_cause_is_in_the_document() -> None:
    """Left out are those that only clients and commands say, and what is not built."""
    said = {reason for row in ROWS for reason in row.reasons}
    elsewhere = {
        Reason.CONFIG_INVALID,
        Reason.READING_INVALID,
        Reason.OPENING_FAILED,
        Reason.KEY_NOT_PINNED,
        Reason.PROOF_INVALID,
        Reason.LOG_FORKED,
        Reason.LOG_ROLLED_BACK,
        Reason.UNREACHABLE,
        Reason.MESSAGE_TOO_LARGE,
    }
    assert said | {reason.value for reason in elsewhere} == {reason.value for reason in Reason}
