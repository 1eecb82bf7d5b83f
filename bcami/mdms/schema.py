"""The tables of the DuckDB store.

Readings have no index: uniqueness is kept by `bcami.mdms.presence`, and DuckDB's own minimum and maximum of each row
group prune scans. One writer keeps every table; rows are only added, except for the cursor, revocations and periods.
"""

from typing import Final

FORMAT: Final = 2

TABLES: Final = """
create table about (format INTEGER not null, chain BLOB not null);
create table cursor (height BIGINT not null, header_hash BLOB not null, time_ms BIGINT not null,
                     usage_height BIGINT not null);
create table meters (number INTEGER not null, hid BLOB not null, enrolled_height BIGINT not null,
                     revoked_height BIGINT);
create table directory (hid BLOB not null, meter_id VARCHAR not null);
create table sessions (hid BLOB not null, number BIGINT not null, encapsulation BLOB not null, period BIGINT not null,
                       height BIGINT not null, public_key BLOB not null, kem_key BLOB not null);
create table periods (number BIGINT not null, key_id BLOB not null, kem_key BLOB not null, public_key BLOB not null,
                      time_ms BIGINT not null, superseded_ms BIGINT not null, height BIGINT not null,
                      erased BOOLEAN not null);
create table readings (meter INTEGER not null, start_s BIGINT not null, energy BIGINT not null,
                       interval_s INTEGER not null, height BIGINT not null, place INTEGER not null);
create table repeats (meter INTEGER not null, start_s BIGINT not null, energy BIGINT not null,
                      interval_s INTEGER not null, height BIGINT not null, place INTEGER not null,
                      equal BOOLEAN not null);
create table unreadable (height BIGINT not null, place INTEGER not null, transaction_id BLOB not null,
                         hid BLOB not null, session BIGINT not null, sequence BIGINT not null,
                         timestamp_ms BIGINT not null, fault VARCHAR not null, content BLOB not null);
create table acknowledgements (period BIGINT not null, sequence BIGINT not null, acknowledged_height BIGINT not null,
                               height BIGINT not null);
create table backups (height BIGINT not null, time_ms BIGINT not null, made_ms BIGINT not null, path VARCHAR not null);
"""
