"""What one client can cost: limits on requests (middleware), on sockets (protocol) and on work in line (queues)."""
