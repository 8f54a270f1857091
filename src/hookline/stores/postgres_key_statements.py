"""What PostgreSQL is asked about keys: key_statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (key_statements.py), who runs it (postgres_keys.py).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart."""

from __future__ import annotations

INSERT_KEY = """\
INSERT INTO keys (id, name, hash, prefix, tenant, "user", models, limits, budget, tags, metadata, created_at,
    expires_at, revoked_at, rotated_at, disabled_at, old_hash, old_until, changed) VALUES ($1::VARCHAR,
    $2::VARCHAR, $3::VARCHAR, $4::VARCHAR, $5::VARCHAR, $6::VARCHAR, $7::JSON, $8::JSON, $9::JSON, $10::JSON,
    $11::JSON, $12, $13, $14, $15, $16, $17::VARCHAR, $18, $19::BIGINT)"""

UPDATE_KEY = """\
UPDATE keys SET name=$1::VARCHAR, hash=$2::VARCHAR, prefix=$3::VARCHAR, tenant=$4::VARCHAR,
    "user"=$5::VARCHAR, models=$6::JSON, limits=$7::JSON, budget=$8::JSON, tags=$9::JSON, metadata=$10::JSON,
    created_at=$11, expires_at=$12, revoked_at=$13, rotated_at=$14, disabled_at=$15, old_hash=$16::VARCHAR,
    old_until=$17, changed=$18::BIGINT WHERE keys.id = $19::VARCHAR"""

FIND_KEY = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys."user", keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.hash = $1::VARCHAR OR keys.old_hash = $1::VARCHAR ORDER BY keys.changed DESC"""

GET_KEY = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys."user", keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.id = $1::VARCHAR"""

PAGE_KEYS = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys."user", keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.id > $1::VARCHAR AND ($2::VARCHAR IS NULL OR keys.name = $2::VARCHAR) AND ($3::VARCHAR IS NULL OR
    keys.tenant = $3::VARCHAR) AND ($4::VARCHAR IS NULL OR keys."user" = $4::VARCHAR) AND (CAST($5 AS BOOLEAN)
    IS NULL OR (keys.revoked_at IS NOT NULL) = CAST($5 AS BOOLEAN)) ORDER BY keys.id
LIMIT $6::INTEGER"""

LAST_CHANGE = """\
SELECT max(keys.changed) AS max_1
FROM keys"""

CHANGED_KEYS = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys."user", keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.changed > $1::BIGINT ORDER BY keys.changed
LIMIT $2::INTEGER"""

LOCK_KEYS = """\
LOCK TABLE keys IN SHARE ROW EXCLUSIVE MODE"""
