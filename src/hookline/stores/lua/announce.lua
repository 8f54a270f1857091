-- A reservation of a Redis that was lost, told to the one there is now; known ones stay. KEYS: in flight, record, then one per window.
-- ARGV: now, id, expires_us, amount, then span_us, resets_us, line of each window.
local now, amount = clock(ARGV[1]), tonumber(ARGV[4])
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local record = { amount = amount, expires = now + tonumber(ARGV[3]), keys = {}, spans = {}, resets = {}, lines = {} }
for i = 3, #KEYS do
  local n, at = i - 2, 4 + (i - 3) * 3
  record.keys[n], record.spans[n], record.resets[n], record.lines[n] = KEYS[i], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  change(KEYS[i], 'r', amount)
  keep_budget(KEYS[i], record.spans[n], record.resets[n], now)
end
redis.call('SET', KEYS[2], cmsgpack.pack(record), 'PX', text(math.ceil(tonumber(ARGV[3]) / 1000) + YEAR_MS))
redis.call('ZADD', KEYS[1], text(record.expires), ARGV[2])
return 1
