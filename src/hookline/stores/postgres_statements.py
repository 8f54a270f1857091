"""What PostgreSQL is asked: statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (statements.py), who runs it (postgres.py), what makes the tables (migrations/).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart."""

from __future__ import annotations

FIND_BOOKED = """\
SELECT ledger.id
FROM ledger
WHERE ledger.id = ANY ($1::VARCHAR[])"""

ADD_SPEND = """\
INSERT INTO spend (quarter, scope, nanousd) VALUES ($1::INTEGER, $2::VARCHAR, $3::BIGINT) ON CONFLICT (quarter,
    scope) DO UPDATE SET nanousd = (spend.nanousd + excluded.nanousd)"""

ADD_GROUP = """\
INSERT INTO spend_groups (id, kind, tenant, key_id, "user", model, deployment, tags) VALUES ($1::BIGINT,
    $2::INTEGER, $3::VARCHAR, $4::VARCHAR, $5::VARCHAR, $6::VARCHAR, $7::VARCHAR, $8::VARCHAR) ON CONFLICT DO
    NOTHING"""

ADD_TAG = """\
INSERT INTO spend_tags (tag, group_id) VALUES ($1::VARCHAR, $2::BIGINT) ON CONFLICT DO NOTHING"""

ADD_HOUR = """\
INSERT INTO spend_hours (kind, hour, group_id, calls, input_tokens, output_tokens, cached_tokens, nanousd,
    unpriced_calls, estimated_calls) VALUES ($1::INTEGER, $2::INTEGER, $3::BIGINT, $4::BIGINT, $5::BIGINT,
    $6::BIGINT, $7::BIGINT, $8::BIGINT, $9::BIGINT, $10::BIGINT) ON CONFLICT (kind, hour, group_id) DO UPDATE
    SET calls = (spend_hours.calls + excluded.calls), input_tokens = (spend_hours.input_tokens +
    excluded.input_tokens), output_tokens = (spend_hours.output_tokens + excluded.output_tokens), cached_tokens
    = (spend_hours.cached_tokens + excluded.cached_tokens), nanousd = (spend_hours.nanousd + excluded.nanousd),
    unpriced_calls = (spend_hours.unpriced_calls + excluded.unpriced_calls), estimated_calls =
    (spend_hours.estimated_calls + excluded.estimated_calls)"""

ADD_DAY = """\
INSERT INTO spend_days (kind, day, group_id, calls, input_tokens, output_tokens, cached_tokens, nanousd,
    unpriced_calls, estimated_calls) VALUES ($1::INTEGER, $2::INTEGER, $3::BIGINT, $4::BIGINT, $5::BIGINT,
    $6::BIGINT, $7::BIGINT, $8::BIGINT, $9::BIGINT, $10::BIGINT) ON CONFLICT (kind, day, group_id) DO UPDATE SET
    calls = (spend_days.calls + excluded.calls), input_tokens = (spend_days.input_tokens +
    excluded.input_tokens), output_tokens = (spend_days.output_tokens + excluded.output_tokens), cached_tokens =
    (spend_days.cached_tokens + excluded.cached_tokens), nanousd = (spend_days.nanousd + excluded.nanousd),
    unpriced_calls = (spend_days.unpriced_calls + excluded.unpriced_calls), estimated_calls =
    (spend_days.estimated_calls + excluded.estimated_calls)"""

SUM_SCOPE = """\
SELECT sum(spend.nanousd) AS sum_1
FROM spend
WHERE spend.scope = $1::VARCHAR AND spend.quarter >= $2::INTEGER AND spend.quarter < $3::INTEGER"""

LIST_QUARTERS = """\
SELECT spend.quarter, spend.nanousd
FROM spend
WHERE spend.scope = $1::VARCHAR AND spend.quarter >= $2::INTEGER ORDER BY spend.quarter"""
