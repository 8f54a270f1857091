"""What SQLite is asked about owners: owner_statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (owner_statements.py), who runs it (sqlite_owners.py).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart."""

from __future__ import annotations

CLAIM = """\
INSERT INTO owners (object_id, tenant, provider, created_at, kind, deployment) VALUES (?, ?, ?, ?, ?, ?) ON
    CONFLICT DO NOTHING"""

FIND_OWNERS = """\
SELECT owners.object_id, owners.tenant, owners.provider, owners.created_at, owners.kind, owners.deployment
FROM owners
WHERE owners.object_id IN (SELECT anon_1.value
FROM json_each(?) AS anon_1)"""

FORGET = """\
DELETE FROM owners WHERE owners.tenant = ? AND owners.object_id IN (SELECT anon_1.value
FROM json_each(?) AS anon_1)"""

KEY_ENDS = """\
SELECT min(keys.tenant) AS min_1, max(keys.tenant) AS max_1
FROM keys"""

OWNER_ENDS = """\
SELECT min(owners.tenant) AS min_1, max(owners.tenant) AS max_1
FROM owners"""
