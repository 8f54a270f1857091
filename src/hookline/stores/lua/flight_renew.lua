-- KEYS as in flight_claim. ARGV: claim, its ms. Answers -1: lost, 0, or 1: somebody waits.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return redis.call('EXISTS', KEYS[2])
