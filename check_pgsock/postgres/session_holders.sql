-- The sessions of clients that are open now, but this one, grouped by who holds them. Without
-- pg_read_all_stats backend_type and client_addr of other roles are NULL: `hidden`; among those may
-- be parallel workers and logical walsenders, which are no sessions.
SELECT datid::int8 AS oid,
       coalesce(usename, '') AS role,
       coalesce(application_name, '') AS application,
       host(client_addr) AS address,
       backend_type IS NULL AS hidden,
       count(*)::int8 AS count
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid()
   AND datid IS NOT NULL
   AND usesysid IS NOT NULL
   AND (backend_type = 'client backend' OR backend_type IS NULL)
 GROUP BY 1, 2, 3, 4, 5
