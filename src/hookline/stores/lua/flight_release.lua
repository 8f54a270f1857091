-- KEYS as in flight_claim. ARGV: claim, 1 = not while somebody waits. Answers 1: still held.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 0
