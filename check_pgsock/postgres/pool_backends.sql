-- Client backends but this session, grouped. Without pg_read_all_stats backend_type and state of
-- other roles are NULL: those sessions are counted, as ones that hide what they are.
SELECT datid::int8 AS oid,
       coalesce(usename, '') AS role,
       coalesce(application_name, '') AS application,
       state,
       backend_type IS NULL AS hidden,
       count(*)::int8 AS count
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid()
   AND datid IS NOT NULL
   AND usesysid IS NOT NULL
   AND (backend_type = 'client backend' OR backend_type IS NULL)
 GROUP BY 1, 2, 3, 4, 5
 ORDER BY 6 DESC, 2, 3, 4
