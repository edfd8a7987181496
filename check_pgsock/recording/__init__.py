"""Recordings: what the kernel says of sockets and processes, kept raw, to be replayed.

A recording is one zip file (deflate, no encryption, no zip64) of these members, in this order:

    moments/M/N/TABLE         the sockets of network namespace N in moment M, both from 1:
        tcp.netlink           a dump of all TCP sockets, message by message, NLMSG_DONE included,
                              with tcp_info, skmeminfo and cgroup: what `ss -D FILE` writes, and
                              `TCPDIAG_FILE=FILE ss -tan` reads
        unix.netlink          a dump of all Unix sockets, with names, files, peers, queues, uids
        tcp, tcp6, unix       instead of both where netlink was refused: the files of /proc/net
    moments/M/processes.json  by process id: `files` of /proc/PID by name, `links`, and `sockets`,
                              the inodes by descriptor (null: not readable). Bytes are UTF-8, others
                              surrogates, as Python's surrogateescape has it
    moments/M/cgroups.json    the paths of the cgroups of sockets, by number
    manifest.json             everything else, see manifest.py: what and whose machine, when, which
                              namespaces, their settings, whose server each listener is, its limit

Whatever can hold a secret is left out: command lines but those of PostgreSQL, poolers and port
forwarders, environments, TCP-MD5 keys. What was not readable is not there, and said to be so.

archive.py alone opens files; capture.py reads what lives, replay.py what was recorded.
"""
