-- One look at the statements that execute now, the parallel workers at work for them, and the
-- sessions idle in a transaction, by database; not those of checks, as in pool_backends.sql.
-- hidden: without pg_read_all_stats all of that is NULL for other roles' sessions, and with
-- track_activities off it is not kept. (A session that is starting has no state, either, but a
-- backend_type.)
SELECT s.datid::int8 AS oid,
       count(*) FILTER (WHERE s.executes)::int8 AS leaders,
       coalesce(sum(w.workers) FILTER (WHERE s.executes), 0)::int8 AS workers,
       count(*) FILTER (WHERE s.executes IS NULL)::int8 AS hidden,
       count(*) FILTER (WHERE s.idle)::int8 AS idle
  FROM (SELECT pid, datid,
               state IN ('idle in transaction', 'idle in transaction (aborted)') AS idle,
               CASE WHEN backend_type <> 'client backend' THEN false
                    WHEN backend_type IS NOT NULL AND state IS DISTINCT FROM 'disabled'
                    THEN coalesce(state IN ('active', 'fastpath function call'), false)
                    END AS executes
          FROM pg_stat_activity
         WHERE pid <> pg_backend_pid()
           AND NOT (usename = session_user AND starts_with(application_name, 'check_pgsock_'))
           AND datid IS NOT NULL
           AND usesysid IS NOT NULL) s
  LEFT JOIN (SELECT leader_pid, count(*) AS workers
               FROM pg_stat_activity
              WHERE backend_type = 'parallel worker'
              GROUP BY leader_pid) w ON w.leader_pid = s.pid
 GROUP BY s.datid
