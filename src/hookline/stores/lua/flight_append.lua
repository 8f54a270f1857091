-- KEYS as in flight_claim. ARGV: claim, bytes. What is shown lives as long as the claim.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('APPEND', KEYS[3], ARGV[2])
redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[1]))
return 1
