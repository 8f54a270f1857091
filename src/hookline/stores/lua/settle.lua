-- KEYS: in flight, record. ARGV: now, id, amount. The windows that have just reached their alert line: index, spent, ...
local now = clock(ARGV[1])
local kept = redis.call('GET', KEYS[2])
if not kept then return {} end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[2])
local record = cmsgpack.unpack(kept)
local amount = record.expires <= now and record.amount or tonumber(ARGV[3])
return charge(record, now, amount)
