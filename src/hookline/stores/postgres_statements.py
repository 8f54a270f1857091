"""What PostgreSQL is asked: statements.py, compiled beforehand.

Lives here: text. Elsewhere: its source (statements.py), who runs it (postgres.py), what makes the tables (migrations/).
Idea: never edited by hand alone; a test compares each constant with what SQLAlchemy makes, white space apart."""

from __future__ import annotations

FIND_BOOKED = """\
SELECT ledger.id
FROM ledger
WHERE ledger.id = ANY ($1::VARCHAR[])"""

ADD_SPEND = """\
INSERT INTO spend (quarter, scope, nanousd) VALUES ($1::INTEGER, $2::VARCHAR, $3::BIGINT) ON CONFLICT
    (quarter, scope) DO UPDATE SET nanousd = (spend.nanousd + excluded.nanousd)"""

SUM_SPEND = """\
SELECT spend.scope, sum(spend.nanousd) AS sum_1
FROM spend
WHERE spend.quarter >= $1::INTEGER AND spend.quarter < $2::INTEGER GROUP BY spend.scope"""

SUM_SCOPE = """\
SELECT sum(spend.nanousd) AS sum_1
FROM spend
WHERE spend.scope = $1::VARCHAR AND spend.quarter >= $2::INTEGER AND spend.quarter < $3::INTEGER"""

LIST_QUARTERS = """\
SELECT spend.quarter, spend.nanousd
FROM spend
WHERE spend.scope = $1::VARCHAR AND spend.quarter >= $2::INTEGER ORDER BY spend.quarter"""
