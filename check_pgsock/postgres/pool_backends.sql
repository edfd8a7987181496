-- Client backends but those of checks, grouped, with what they have spent in statements and in
-- transactions since their counters last went into pg_stat_database, in seconds of all added.
-- Not in it is the last statement outside a transaction block, whose time goes there with the
-- session's next transaction: a session that goes on as before has one such at every moment.
-- Without pg_read_all_stats backend_type and state of other roles are NULL: those sessions are
-- counted, as ones that hide what they are.
--
-- active: in the present statement, or in the one before the present wait in a transaction.
-- idle: in the present wait in a transaction.
-- unsplit: in the present transaction before that; how much of it was idle is not known.
-- oldest: the age of the oldest transaction.
-- waiting: how many wait for a lock.
--
-- Sessions of checks are this one and those of its role that say so; of another role that is just
-- a name.
SELECT datid::int8 AS oid,
       coalesce(usename, '') AS role,
       coalesce(application_name, '') AS application,
       state,
       backend_type IS NULL AS hidden,
       sum(CASE WHEN state IN ('active', 'fastpath function call')
                THEN greatest(moment - changed, 0)
                WHEN in_transaction THEN greatest(changed - began, 0) ELSE 0 END)::float8 AS active,
       sum(CASE WHEN in_transaction THEN greatest(moment - changed, 0) ELSE 0 END)::float8 AS idle,
       sum(CASE WHEN in_transaction THEN greatest(began - entered, 0)
                WHEN state = 'active' THEN greatest(changed - entered, 0)
                ELSE 0 END)::float8 AS unsplit,
       max(moment - entered)::float8 AS oldest,
       count(*)::int8 AS count,
       count(*) FILTER (WHERE state = 'active' AND wait_event_type = 'Lock')::int8 AS waiting
  FROM (SELECT *,
               state IN ('idle in transaction', 'idle in transaction (aborted)') AS in_transaction,
               extract(epoch FROM clock_timestamp())::float8 AS moment,
               extract(epoch FROM state_change)::float8 AS changed,
               extract(epoch FROM coalesce(query_start, state_change))::float8 AS began,
               extract(epoch FROM xact_start)::float8 AS entered
          FROM pg_stat_activity) AS activity
 WHERE pid <> pg_backend_pid()
   AND NOT (usename = session_user AND starts_with(application_name, 'check_pgsock_'))
   AND datid IS NOT NULL
   AND usesysid IS NOT NULL
   AND (backend_type = 'client backend' OR backend_type IS NULL)
 GROUP BY 1, 2, 3, 4, 5
 ORDER BY count(*) DESC, 2, 3, 4
