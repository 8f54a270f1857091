"""What SQLite is told: the tables of tables.py, compiled beforehand.

Lives here: text. Elsewhere: its source (tables.py), who runs it (sqlite.py).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes of tables.py, white space apart."""

from __future__ import annotations

SCHEMA_VERSION = 1
"""`PRAGMA user_version` of a database with these tables."""

CREATE_LEDGER = """\
CREATE TABLE IF NOT EXISTS ledger (
    id VARCHAR NOT NULL,
    call_id VARCHAR NOT NULL,
    at DOUBLE NOT NULL,
    tenant VARCHAR NOT NULL,
    key_id VARCHAR NOT NULL,
    user VARCHAR,
    model VARCHAR NOT NULL,
    deployment VARCHAR NOT NULL,
    endpoint VARCHAR NOT NULL,
    outcome VARCHAR NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    cost_nanousd BIGINT,
    is_estimated BOOLEAN NOT NULL,
    PRIMARY KEY (id)
)"""

CREATE_SPEND = """\
CREATE TABLE IF NOT EXISTS spend (
    quarter INTEGER NOT NULL,
    scope VARCHAR NOT NULL,
    nanousd BIGINT NOT NULL,
    PRIMARY KEY (quarter, scope)
)"""

FIND_BOOKED = """\
SELECT ledger.id
FROM ledger
WHERE ledger.id IN (SELECT anon_1.value FROM json_each(?) AS anon_1)"""

BOOK = """\
INSERT INTO ledger (id, call_id, at, tenant, key_id, user, model, deployment, endpoint, outcome,
    input_tokens, output_tokens, cached_tokens, cost_nanousd, is_estimated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

ADD_SPEND = """\
INSERT INTO spend (quarter, scope, nanousd) VALUES (?, ?, ?)
ON CONFLICT (quarter, scope) DO UPDATE SET nanousd = (spend.nanousd + excluded.nanousd)"""

SUM_SPEND = """\
SELECT spend.scope, sum(spend.nanousd) AS sum_1
FROM spend
WHERE spend.quarter >= ? AND spend.quarter < ? GROUP BY spend.scope"""
