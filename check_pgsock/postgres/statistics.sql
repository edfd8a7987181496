-- The session statistics of the databases that are named and, if asked for, of all but templates.
SELECT d.oid::int8 AS oid,
       d.datname AS name,
       s.active_time,
       s.idle_in_transaction_time,
       s.session_time,
       s.sessions,
       s.sessions_abandoned,
       s.sessions_fatal,
       s.sessions_killed,
       extract(epoch FROM s.stats_reset)::float8 AS stats_reset,
       extract(epoch FROM clock_timestamp())::float8 AS taken
  FROM pg_database d
  JOIN pg_stat_database s ON s.datid = d.oid
 WHERE (%(every)s AND d.datallowconn AND NOT d.datistemplate)
    OR d.datname = ANY (%(names)s::name[])
 ORDER BY d.datname
