-- What tells this server, this database and this session from all others.
SELECT pg_backend_pid() AS backend_pid,
       (SELECT extract(epoch FROM a.backend_start)::float8
          FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()) AS backend_start,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS postmaster_start,
       host(inet_server_addr()) AS address,
       inet_server_port() AS port,
       current_setting('port')::int AS listens_at,  -- over a Unix socket, too
       current_database() AS database
