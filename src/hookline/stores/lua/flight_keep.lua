-- KEYS as in flight_claim. ARGV: claim ('': whatever it holds), reply, its ms.
local held = redis.call('GET', KEYS[1])
if held and ARGV[1] ~= '' and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2], KEYS[3])
return 1
