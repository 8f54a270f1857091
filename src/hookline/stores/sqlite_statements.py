"""What SQLite is told: statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (statements.py, tables.py), who runs it (sqlite.py), how an older file becomes this schema (migrations/).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart, and another what CREATE makes
with what the migrations make."""

from __future__ import annotations

CREATE = """\
CREATE TABLE keys (
    id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    hash VARCHAR NOT NULL,
    prefix VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    user VARCHAR,
    models JSON,
    limits JSON,
    budget JSON,
    tags JSON,
    metadata JSON,
    created_at DOUBLE NOT NULL,
    expires_at DOUBLE,
    revoked_at DOUBLE,
    rotated_at DOUBLE,
    disabled_at DOUBLE,
    old_hash VARCHAR,
    old_until DOUBLE,
    changed BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX keys_changed ON keys (changed);
CREATE UNIQUE INDEX keys_hash ON keys (hash);
CREATE INDEX keys_old_hash ON keys (old_hash);
CREATE INDEX keys_tenant ON keys (tenant, id);
CREATE TABLE ledger (
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
    price_version VARCHAR,
    corrects VARCHAR,
    group_id BIGINT,
    PRIMARY KEY (id)
);
CREATE INDEX ledger_at ON ledger (at);
CREATE TABLE owners (
    object_id VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    provider VARCHAR NOT NULL,
    created_at DOUBLE NOT NULL,
    kind VARCHAR DEFAULT '' NOT NULL,
    deployment VARCHAR DEFAULT '' NOT NULL,
    PRIMARY KEY (object_id)
);
CREATE INDEX owners_tenant ON owners (tenant, object_id);
CREATE TABLE spend (
    quarter INTEGER NOT NULL,
    scope VARCHAR NOT NULL,
    nanousd BIGINT NOT NULL,
    PRIMARY KEY (quarter, scope)
);
CREATE INDEX spend_scope ON spend (scope, quarter);
CREATE TABLE spend_days (
    kind INTEGER NOT NULL,
    day INTEGER NOT NULL,
    group_id BIGINT NOT NULL,
    calls BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    nanousd BIGINT NOT NULL,
    unpriced_calls BIGINT NOT NULL,
    estimated_calls BIGINT NOT NULL,
    PRIMARY KEY (kind, day, group_id)
)
 WITHOUT ROWID;
CREATE INDEX spend_days_group ON spend_days (group_id, day);
CREATE TABLE spend_groups (
    id BIGINT NOT NULL,
    kind INTEGER NOT NULL,
    tenant VARCHAR NOT NULL,
    key_id VARCHAR NOT NULL,
    user VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    deployment VARCHAR NOT NULL,
    tags VARCHAR NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX spend_groups_kind ON spend_groups (kind, id);
CREATE TABLE spend_hours (
    kind INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    group_id BIGINT NOT NULL,
    calls BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    nanousd BIGINT NOT NULL,
    unpriced_calls BIGINT NOT NULL,
    estimated_calls BIGINT NOT NULL,
    PRIMARY KEY (kind, hour, group_id)
)
 WITHOUT ROWID;
CREATE TABLE spend_tags (
    tag VARCHAR NOT NULL,
    group_id BIGINT NOT NULL,
    PRIMARY KEY (group_id, tag)
)
 WITHOUT ROWID;
CREATE INDEX spend_tags_tag ON spend_tags (tag, group_id)"""

FIND_BOOKED = """\
SELECT ledger.id
FROM ledger
WHERE ledger.id IN (SELECT anon_1.value
FROM json_each(?) AS anon_1)"""

BOOK = """\
INSERT INTO ledger (id, call_id, at, tenant, key_id, user, model, deployment, endpoint, outcome, input_tokens,
    output_tokens, cached_tokens, cost_nanousd, is_estimated, price_version, corrects, group_id) VALUES (?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

ADD_SPEND = """\
INSERT INTO spend (quarter, scope, nanousd) VALUES (?, ?, ?) ON CONFLICT (quarter, scope) DO UPDATE SET nanousd
    = (spend.nanousd + excluded.nanousd)"""

ADD_GROUP = """\
INSERT INTO spend_groups (id, kind, tenant, key_id, user, model, deployment, tags) VALUES (?, ?, ?, ?, ?, ?, ?,
    ?) ON CONFLICT DO NOTHING"""

ADD_TAG = """\
INSERT INTO spend_tags (tag, group_id) VALUES (?, ?) ON CONFLICT DO NOTHING"""

ADD_HOUR = """\
INSERT INTO spend_hours (kind, hour, group_id, calls, input_tokens, output_tokens, cached_tokens, nanousd,
    unpriced_calls, estimated_calls) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, hour, group_id) DO
    UPDATE SET calls = (spend_hours.calls + excluded.calls), input_tokens = (spend_hours.input_tokens +
    excluded.input_tokens), output_tokens = (spend_hours.output_tokens + excluded.output_tokens), cached_tokens
    = (spend_hours.cached_tokens + excluded.cached_tokens), nanousd = (spend_hours.nanousd + excluded.nanousd),
    unpriced_calls = (spend_hours.unpriced_calls + excluded.unpriced_calls), estimated_calls =
    (spend_hours.estimated_calls + excluded.estimated_calls)"""

ADD_DAY = """\
INSERT INTO spend_days (kind, day, group_id, calls, input_tokens, output_tokens, cached_tokens, nanousd,
    unpriced_calls, estimated_calls) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, day, group_id) DO
    UPDATE SET calls = (spend_days.calls + excluded.calls), input_tokens = (spend_days.input_tokens +
    excluded.input_tokens), output_tokens = (spend_days.output_tokens + excluded.output_tokens), cached_tokens =
    (spend_days.cached_tokens + excluded.cached_tokens), nanousd = (spend_days.nanousd + excluded.nanousd),
    unpriced_calls = (spend_days.unpriced_calls + excluded.unpriced_calls), estimated_calls =
    (spend_days.estimated_calls + excluded.estimated_calls)"""

SUM_SCOPE = """\
SELECT sum(spend.nanousd) AS sum_1
FROM spend
WHERE spend.scope = ? AND spend.quarter >= ? AND spend.quarter < ?"""

LIST_QUARTERS = """\
SELECT spend.quarter, spend.nanousd
FROM spend
WHERE spend.scope = ? AND spend.quarter >= ? ORDER BY spend.quarter"""
