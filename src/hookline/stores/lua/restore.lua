-- KEYS: epoch, the window. ARGV: now, a new epoch, span_us, resets_us, line, then at_us, amount of each charge. A window that is known stays as it is: 0. Restored: 1.
-- The epoch is too young, so that the ledger must be asked again: 5, microseconds.
local key, now, span, line = KEYS[2], clock(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[5])
local _, grace = epoch_of(KEYS[1], ARGV[2])
if grace > 0 then return { 5, grace } end
if redis.call('HGET', key, 'k') then return { 0 } end
redis.call('HSET', key, 'k', '1')
keep_budget(key, span, tonumber(ARGV[4]), now)
for i = 6, #ARGV, 2 do
  local at, amount = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  if span > 0 then
    local m = redis.call('HMGET', key, 'u', 'a', 'z') -- as they come: what is too old leaves when the window is read
    add({ key = key, span = span, u = tonumber(m[1] or 0), a = tonumber(m[2] or 0), z = tonumber(m[3] or 0) }, at, amount)
  else
    redis.call('HINCRBY', key, 's', text(amount))
  end
end
if line >= 0 and spent_in(key, span, now) >= line then redis.call('HSET', key, 'l', '1') end
return { 1 }
