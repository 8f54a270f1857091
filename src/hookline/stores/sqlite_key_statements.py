"""What SQLite is asked about keys: key_statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (key_statements.py), who runs it (sqlite_keys.py).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart."""

from __future__ import annotations

INSERT_KEY = """\
INSERT INTO keys (id, name, hash, prefix, tenant, user, models, limits, budget, tags, metadata, created_at,
    expires_at, revoked_at, rotated_at, disabled_at, old_hash, old_until, changed) VALUES (?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

UPDATE_KEY = """\
UPDATE keys SET name=?, hash=?, prefix=?, tenant=?, user=?, models=?, limits=?, budget=?, tags=?, metadata=?,
    created_at=?, expires_at=?, revoked_at=?, rotated_at=?, disabled_at=?, old_hash=?, old_until=?, changed=?
    WHERE keys.id = ?"""

FIND_KEY = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys.user, keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.hash = ? OR keys.old_hash = ? ORDER BY keys.changed DESC"""

GET_KEY = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys.user, keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.id = ?"""

PAGE_KEYS = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys.user, keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.id > ? AND (? IS NULL OR keys.name = ?) AND (? IS NULL OR keys.tenant = ?) AND (? IS NULL OR
    keys.user = ?) AND (CAST(? AS BOOLEAN) IS NULL OR (keys.revoked_at IS NOT NULL) = CAST(? AS BOOLEAN))
    ORDER BY keys.id
LIMIT ? OFFSET ?"""

LAST_CHANGE = """\
SELECT max(keys.changed) AS max_1
FROM keys"""

CHANGED_KEYS = """\
SELECT keys.id, keys.name, keys.hash, keys.prefix, keys.tenant, keys.user, keys.models, keys.limits,
    keys.budget, keys.tags, keys.metadata, keys.created_at, keys.expires_at, keys.revoked_at, keys.rotated_at,
    keys.disabled_at, keys.old_hash, keys.old_until, keys.changed
FROM keys
WHERE keys.changed > ? ORDER BY keys.changed
LIMIT ? OFFSET ?"""
