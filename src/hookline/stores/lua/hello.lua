-- A worker shows that it lives. KEYS: epoch, workers. ARGV: its name, the epoch it knows ('': none), a new epoch.
-- Answers: epoch, how many workers live, how often leases were recalled.
local epoch = epoch_of(KEYS[1], ARGV[3])
local now = server_us()
wait_for_others(KEYS[1], ARGV[2], epoch)
redis.call('ZADD', KEYS[2], text(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now - 5000000))
redis.call('PEXPIRE', KEYS[2], '60000')
return { epoch, redis.call('ZCARD', KEYS[2]), tonumber(redis.call('HGET', KEYS[1], 'recalls') or 0) }
