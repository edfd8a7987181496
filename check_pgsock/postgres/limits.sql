-- What a server can hold, and which session says so. Settings that a version or a vendor lacks are
-- 0: reserved_connections came with 16, rds.rds_superuser_reserved_connections is Amazon's.
SELECT current_setting('max_connections')::int AS slots,
       current_setting('superuser_reserved_connections')::int
       + coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::int
       + coalesce(nullif(current_setting('rds.rds_superuser_reserved_connections', true), ''),
                  '0')::int AS reserved,
       current_database() AS database,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit,
       pg_backend_pid() AS backend_pid
