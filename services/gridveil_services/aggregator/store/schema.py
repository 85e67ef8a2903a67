"""Tables of the SQLite store. Times of windows in Unix seconds."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS windows (
    start INTEGER PRIMARY KEY,
    "end" INTEGER NOT NULL,
    closes INTEGER NOT NULL,
    parameters_digest BLOB NOT NULL,
    roster_version INTEGER NOT NULL,
    enrolled INTEGER NOT NULL,
    lanes INTEGER NOT NULL,
    lane_capacity INTEGER NOT NULL,
    parameter_set TEXT NOT NULL,
    slots INTEGER NOT NULL,
    phase INTEGER NOT NULL
) STRICT;

-- While a window is open, what was added so far; afterwards the lane's sum.
CREATE TABLE IF NOT EXISTS lanes (
    window INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    count INTEGER NOT NULL,
    sum BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (window, lane)
) STRICT;

-- Accepted reports in the order they came, a row for each batch of a lane: rows by meter would
-- write a page of the file for almost every report. Deleted when the window is settled.
CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY,
    window INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    reports BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS journal_by_lane ON journal (window, lane);

-- Written when a window is sealed; before that, memory has them from the journal.
CREATE TABLE IF NOT EXISTS receipts (
    window INTEGER NOT NULL,
    meter_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    PRIMARY KEY (window, meter_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS equivocations (
    window INTEGER NOT NULL,
    meter_id BLOB NOT NULL,
    first BLOB NOT NULL,
    second_parameters_digest BLOB NOT NULL,
    second BLOB NOT NULL,
    PRIMARY KEY (window, meter_id)
) STRICT, WITHOUT ROWID;

-- What this aggregator acknowledged, where several share a Redis: a row for each batch of a lane.
-- Deleted when the window is settled. No index: it is read once a window, and written all the time.
CREATE TABLE IF NOT EXISTS acknowledgements (
    number INTEGER PRIMARY KEY,
    window INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    reports BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT;

-- What this aggregator is called among those that share a Redis: one row.
CREATE TABLE IF NOT EXISTS replica (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL
) STRICT;

-- Why a window was poisoned, and which aggregators were seen to take part in it.
CREATE TABLE IF NOT EXISTS poisoned (
    window INTEGER PRIMARY KEY,
    why TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS participants (
    window INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (window, name)
) STRICT, WITHOUT ROWID;

-- One row: no window that starts up to here is ever opened again.
CREATE TABLE IF NOT EXISTS forgotten (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    start INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS parameters (
    number INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    end_window INTEGER NOT NULL,
    document BLOB NOT NULL,
    signature BLOB NOT NULL
) STRICT;

-- One row: the newest version.
CREATE TABLE IF NOT EXISTS roster (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    city_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    effective_window INTEGER NOT NULL,
    count INTEGER NOT NULL,
    digest BLOB NOT NULL,
    signature BLOB NOT NULL
) STRICT;

-- In force from version since until before version until.
CREATE TABLE IF NOT EXISTS members (
    meter_id BLOB NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    signing_key BLOB NOT NULL,
    sealing_key BLOB NOT NULL,
    PRIMARY KEY (meter_id, since)
) STRICT, WITHOUT ROWID
"""
