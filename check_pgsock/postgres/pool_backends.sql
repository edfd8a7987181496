-- Client backends but this session, grouped. Without pg_read_all_stats backend_type and state of
-- other roles are NULL: those sessions are counted, as ones that hide what they are.
--
-- unflushed: in a statement or transaction, idle in it or not, for a second or more. Its time comes
-- into the statistics when it ends. NULL: not known (no privilege, or track_activities is off).
SELECT datid::int8 AS oid,
       coalesce(usename, '') AS role,
       coalesce(application_name, '') AS application,
       state,
       backend_type IS NULL AS hidden,
       CASE WHEN state = 'idle' THEN false
            WHEN state <> 'disabled'
            THEN coalesce(xact_start, query_start, clock_timestamp())
                 <= clock_timestamp() - interval '1 second' END AS unflushed,
       count(*)::int8 AS count
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid()
   AND datid IS NOT NULL
   AND usesysid IS NOT NULL
   AND (backend_type = 'client backend' OR backend_type IS NULL)
 GROUP BY 1, 2, 3, 4, 5, 6
 ORDER BY 7 DESC, 2, 3, 4
