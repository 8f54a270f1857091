-- KEYS as in flight_claim. ARGV: offset, ms of waiting. Answers what it holds, and what was shown from there on.
local held = redis.call('GET', KEYS[1])
if not held or string.sub(held, 1, 1) == '=' then return { held, '' } end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
return { held, redis.call('GETRANGE', KEYS[3], ARGV[1], -1) }
