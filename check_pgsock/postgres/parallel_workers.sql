-- The parallel workers that statements which have ended wanted and got, by database; from 18 on.
SELECT datid::int8 AS oid,
       parallel_workers_to_launch::int8 AS to_launch,
       parallel_workers_launched::int8 AS launched
  FROM pg_stat_database
 WHERE datid <> 0
