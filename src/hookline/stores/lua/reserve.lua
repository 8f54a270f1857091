-- KEYS: in flight, epoch, record, lease, then one per window. ARGV: now, id, record prefix, expires_us, amount, the epoch the worker knows ('': none), a new
-- epoch, whether every window must be known, the lease's id, how much it may be ('0': none is wanted), its expires_us, then limit, is_hard, span_us, resets_us, line of each window.
-- Reserved: 1, epoch, by how much the lease grew. Refused: 0, the window, spent, held. Another epoch: 2, epoch. A window nobody has restored: 3, the window.
-- Leases must be recalled first: 4, the window, spent, held. The epoch is too young: 5, microseconds.
local now, id, prefix, expires, amount = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local want = tonumber(ARGV[10])
local epoch, grace = epoch_of(KEYS[2], ARGV[7])
if ARGV[6] ~= '' and ARGV[6] ~= epoch then
  wait_for_others(KEYS[2], ARGV[6], epoch)
  return { 2, epoch }
end
if grace > 0 then return { 5, grace } end
charge_expired(KEYS[1], prefix, now)
local record = { amount = amount, expires = now + expires, keys = {}, spans = {}, resets = {}, lines = {} }
local room, may_lease = math.huge, want > 0
for i = 5, #KEYS do
  local key, at = KEYS[i], 11 + (i - 5) * 5
  local limit, is_hard, span = tonumber(ARGV[at + 1]), ARGV[at + 2] == '1', tonumber(ARGV[at + 3])
  local m = redis.call('HMGET', key, 'r', 'o', 'c', 'k', 'l')
  if ARGV[8] == '1' and not m[4] then return { 3, i - 5 } end
  local spent = spent_in(key, span, now)
  local held = spent + tonumber(m[1] or 0)
  if is_hard and held + amount > limit then
    if tonumber(m[2] or 0) > 0 then
      redis.call('HSET', key, 'c', text(now + RECALL_US))
      redis.call('HINCRBY', KEYS[2], 'recalls', '1')
      return { 4, i - 5, spent, held }
    end
    return { 0, i - 5, spent, held }
  end
  local n, line = i - 4, tonumber(ARGV[at + 5])
  record.keys[n], record.spans[n] = key, span
  record.resets[n], record.lines[n] = tonumber(ARGV[at + 4]), line
  room = math.min(room, limit - held - amount)
  if line >= 0 and m[5] ~= '1' then room = math.min(room, line - held - amount) end -- no leased money crosses it: who settles there is told
  if m[3] and tonumber(m[3]) > now then may_lease = false end
end
for n, key in ipairs(record.keys) do
  redis.call('HINCRBY', key, 'r', text(amount))
  redis.call('HSET', key, 'k', '1')
  keep_budget(key, record.spans[n], record.resets[n], now)
end
redis.call('SET', KEYS[3], cmsgpack.pack(record), 'PX', text(math.ceil(expires / 1000) + YEAR_MS))
redis.call('ZADD', KEYS[1], text(record.expires), id)
redis.call('PEXPIRE', KEYS[1], text(math.ceil(expires / 1000) + YEAR_MS))
local extra = 0
if may_lease then extra = grow_lease(KEYS[1], KEYS[4], ARGV[9], record, room, want, amount, now, tonumber(ARGV[11])) end
return { 1, epoch, extra }
