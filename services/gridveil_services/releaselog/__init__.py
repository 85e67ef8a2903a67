"""The release log on disk: the key-holder appends, the totals service reads."""
