-- KEYS: in flight, epoch, record, then one per window. ARGV: now, id, record prefix, expires_us, amount, the epoch the worker knows ('': none), a new
-- epoch, whether every window must be known, then limit, is_hard, span_us, resets_us, line of each window.
-- Reserved: 1, epoch. Refused: 0, the window, spent, held. Another epoch: 2, epoch. A window nobody has restored: 3, the window.
local now, id, prefix, expires, amount = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local epoch = redis.call('GET', KEYS[2])
if not epoch then
  epoch = ARGV[7]
  redis.call('SET', KEYS[2], epoch)
end
if ARGV[6] ~= '' and ARGV[6] ~= epoch then return { 2, epoch } end
charge_expired(KEYS[1], prefix, now)
local record = { amount = amount, expires = now + expires, keys = {}, spans = {}, resets = {}, lines = {} }
for i = 4, #KEYS do
  local key, at = KEYS[i], 8 + (i - 4) * 5
  local limit, is_hard, span = tonumber(ARGV[at + 1]), ARGV[at + 2] == '1', tonumber(ARGV[at + 3])
  if ARGV[8] == '1' and redis.call('EXISTS', key) == 0 then return { 3, i - 4 } end
  local spent = spent_in(key, span, now)
  local held = spent + tonumber(redis.call('HGET', key, 'r') or 0)
  if is_hard and held + amount > limit then return { 0, i - 4, spent, held } end
  local n = i - 3
  record.keys[n], record.spans[n] = key, span
  record.resets[n], record.lines[n] = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
end
for n, key in ipairs(record.keys) do
  redis.call('HINCRBY', key, 'r', text(amount))
  keep_budget(key, record.spans[n], record.resets[n], now)
end
redis.call('SET', KEYS[3], cmsgpack.pack(record), 'PX', text(math.ceil(expires / 1000) + YEAR_MS))
redis.call('ZADD', KEYS[1], text(record.expires), id)
redis.call('PEXPIRE', KEYS[1], text(math.ceil(expires / 1000) + YEAR_MS))
return { 1, epoch }
