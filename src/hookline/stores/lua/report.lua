-- What a worker says of its lease; saying it twice changes nothing. KEYS: in flight, epoch, lease, then one per window. ARGV: now, the lease's id, record prefix,
-- the epoch the worker knows, expires_us, all that was spent of it so far, what is left in it, whether it is closed, whether it is at its end, how much it may be
-- ('0': it must not grow), the largest bound, then limit, is_hard, span_us, resets_us, line of each window.
-- Answers: 0 (go on), 1 (recalled: close it) or 2 (charged: it was silent too long), then by how much it grew. Not known: 3.
local now, id, prefix, expires = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[5])
local total, left, is_closed, is_end = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1', ARGV[9] == '1'
local want, bound = tonumber(ARGV[10]), tonumber(ARGV[11])
local kept = redis.call('GET', KEYS[3])
if not kept then
  if is_end or redis.call('HGET', KEYS[2], 'id') == ARGV[4] then return { 3, 0 } end
  local lease = { amount = left, total = total, is_closed = is_closed, keys = {}, spans = {}, resets = {}, lines = {} }
  for i = 4, #KEYS do -- of a Redis that was lost
    local n, at = i - 3, 11 + (i - 4) * 5
    lease.keys[n], lease.spans[n], lease.resets[n], lease.lines[n] = KEYS[i], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    change(KEYS[i], 'r', left)
    if not is_closed then change(KEYS[i], 'o', left) end
    keep_budget(KEYS[i], lease.spans[n], lease.resets[n], now)
  end
  redis.call('SET', KEYS[3], cmsgpack.pack(lease), 'PX', text(YEAR_MS))
  redis.call('ZADD', KEYS[1], text(now + expires), id)
  return { 0, 0 }
end
local lease = cmsgpack.unpack(kept)
local spent = total - lease.total
if lease.is_charged then
  if is_end then
    for i, window in ipairs(lease.keys) do
      if spent ~= lease.amount then correct(window, lease.spans[i], lease.entries[i][1], lease.entries[i][2], spent - lease.amount) end
    end
    redis.call('DEL', KEYS[3])
  end
  return { 2, 0 }
end
left = math.max(math.min(left, lease.amount - spent), 0)
local answer, room, may_grow = 0, math.huge, want > 0 and not is_closed
local was_open = lease.is_closed and 0 or lease.amount
local is_open = is_closed and 0 or left
for i = 4, #KEYS do
  local n, at, key = i - 3, 11 + (i - 4) * 5, KEYS[i]
  change(key, 'r', left - lease.amount)
  change(key, 'o', is_open - was_open)
  if spent ~= 0 then spend(key, lease.spans[n], now, spent) end
  keep_budget(key, lease.spans[n], lease.resets[n], now)
  local m = redis.call('HMGET', key, 'r', 'c', 'l', 'k')
  if not m[4] then may_grow = false end -- nobody has restored it
  local line = tonumber(ARGV[at + 5])
  local sum = spent_in(key, lease.spans[n], now)
  if m[2] and tonumber(m[2]) > now then answer = 1 end
  room = math.min(room, tonumber(ARGV[at + 1]) - sum - tonumber(m[1] or 0))
  if line >= 0 and m[3] ~= '1' then
    if sum >= line then answer = 1 end -- the next call settles here, and is told
    room = math.min(room, line - sum - tonumber(m[1] or 0))
  end
end
lease.total, lease.amount, lease.is_closed = total, left, is_closed
if is_end then
  redis.call('DEL', KEYS[3])
  redis.call('ZREM', KEYS[1], id)
  return { answer, 0 }
end
redis.call('SET', KEYS[3], cmsgpack.pack(lease), 'PX', text(YEAR_MS))
redis.call('ZADD', KEYS[1], text(now + expires), id)
local extra = 0
if may_grow and answer == 0 then extra = grow_lease(KEYS[1], KEYS[3], id, lease, room, want, bound, now, expires) end
return { answer, extra }
