-- What every script begins with: time, windows (windows.py in Lua), money.
-- Times are whole microseconds and money whole nano-dollars: both stay exact in a double below 2^53.

local YEAR_MS = 400 * 86400000 -- what nobody has asked for in so long leaves
local DAY_MS = 86400000
local GRAINS = 60

local function clock(given) -- the server's own time, so that all workers agree; tests give theirs
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function text(n) return string.format('%.0f', n) end

local function entry_of(key, index)
  local found = redis.call('HGET', key, text(index))
  if not found then return nil end
  local first, last, amount = string.match(found, '^(%d+):(%d+):(-?%d+)$')
  return { first = tonumber(first), last = tonumber(last), amount = tonumber(amount) }
end

local function write_entry(key, index, e)
  redis.call('HSET', key, text(index), text(e.first) .. ':' .. text(e.last) .. ':' .. text(e.amount))
end

-- A window is a hash: u = used, entries a..z-1 under their index, oldest first.
local function open(key, span, now)
  local m = redis.call('HMGET', key, 'u', 'a', 'z')
  local w = { key = key, span = span, u = tonumber(m[1] or 0), a = tonumber(m[2] or 0), z = tonumber(m[3] or 0) }
  local oldest, has_changed = now - span, false
  while w.a < w.z do
    local e = entry_of(key, w.a)
    if e then
      if e.last > oldest then break end
      redis.call('HDEL', key, text(w.a))
      w.u = w.u - e.amount
    end
    w.a = w.a + 1
    has_changed = true
  end
  if has_changed then redis.call('HSET', key, 'u', text(w.u), 'a', text(w.a)) end
  return w
end

local function add(w, now, amount) -- the index and beginning of the entry it counts in
  local e = w.z > w.a and entry_of(w.key, w.z - 1) or nil
  local index = w.z - 1
  if e and now - e.first < w.span / GRAINS then
    e.amount = e.amount + amount
    if now > e.last then e.last = now end
  else
    e = { first = now, last = now, amount = amount }
    index = w.z
    w.z = w.z + 1
  end
  w.u = w.u + amount
  write_entry(w.key, index, e)
  redis.call('HSET', w.key, 'u', text(w.u), 'a', text(w.a), 'z', text(w.z))
  return index, e.first
end

local function reset_us(w, now)
  local e = w.z > w.a and entry_of(w.key, w.z - 1) or nil
  return e and math.max(e.last + w.span - now, 0) or 0
end

local function fits_after_us(w, now, room)
  local used = w.u
  if used <= room then return 0 end
  for index = w.a, w.z - 1 do
    local e = entry_of(w.key, index)
    if e then
      used = used - e.amount
      if used <= room then return math.max(e.last + w.span - now, 0) end
    end
  end
  return -1
end

-- A budget is a hash: s = spent in a fixed window, r = reserved (leases too), o = of that: in leases that may be recalled, c = until when none is granted,
-- l = whether its alert is out, k = whether what was spent before is in it, w = span of a rolling one (its entries as in a window). `resets` < 0: never.
local function spent_in(key, span, now)
  if span > 0 then return open(key, span, now).u end
  return tonumber(redis.call('HGET', key, 's') or 0)
end

local function spend(key, span, now, amount) -- where it can be corrected: the entry and its beginning
  if span > 0 then return add(open(key, span, now), now, amount) end
  redis.call('HINCRBY', key, 's', text(amount))
  return -1, 0
end

local function correct(key, span, index, first, amount) -- what `spend` has added; an entry that has left stays as it is
  if span == 0 then
    redis.call('HINCRBY', key, 's', text(amount))
    return
  end
  local e = entry_of(key, index)
  if e and e.first == first then
    e.amount = e.amount + amount
    write_entry(key, index, e)
    redis.call('HINCRBY', key, 'u', text(amount))
  end
end

local function change(key, field, amount) -- of what can't be less than nothing
  if amount == 0 then return end
  local now_is = tonumber(redis.call('HINCRBY', key, field, text(amount)))
  if now_is < 0 then redis.call('HSET', key, field, '0') end
end

local function keep_budget(key, span, resets, now)
  local ms = YEAR_MS
  if span > 0 then
    ms = math.ceil(span / 1000) + YEAR_MS
  elseif resets >= 0 then
    ms = math.max(math.ceil((resets - now) / 1000), 0) + DAY_MS
  end
  redis.call('HSET', key, 'w', text(span))
  redis.call('PEXPIRE', key, text(ms))
end

local function charge(record, now, amount) -- the windows that have just reached their alert line: index, spent, ...
  local alerts = {}
  for i, key in ipairs(record.keys) do
    local span, line = record.spans[i], record.lines[i]
    change(key, 'r', -record.amount)
    if amount ~= 0 then spend(key, span, now, amount) end
    if line >= 0 then
      local spent = spent_in(key, span, now)
      local is_over = spent >= line
      if is_over and redis.call('HGET', key, 'l') ~= '1' then
        alerts[#alerts + 1] = i - 1
        alerts[#alerts + 1] = spent
      end
      redis.call('HSET', key, 'l', is_over and '1' or '0')
    end
    keep_budget(key, span, record.resets[i], now)
  end
  return alerts
end

-- The whole of a lease whose worker is silent. What is left of it afterwards stands beside it, so that the worker, if it lives, can take the difference back.
local function charge_lease(key, record, now)
  record.is_charged, record.entries = true, {}
  for i, window in ipairs(record.keys) do
    change(window, 'r', -record.amount)
    if not record.is_closed then change(window, 'o', -record.amount) end
    local index, first = -1, 0
    if record.amount ~= 0 then index, first = spend(window, record.spans[i], now, record.amount) end
    record.entries[i] = { index, first }
    keep_budget(window, record.spans[i], record.resets[i], now)
  end
  redis.call('SET', key, cmsgpack.pack(record), 'PX', text(DAY_MS))
end

-- Reservations whose worker died are charged whole by whoever comes next. Bounded, so that no decision waits for a thousand of them.
local function charge_expired(in_flight, prefix, now)
  local ids = redis.call('ZRANGEBYSCORE', in_flight, '-inf', text(now), 'LIMIT', 0, 100)
  for _, id in ipairs(ids) do
    redis.call('ZREM', in_flight, id)
    local kept = redis.call('GET', prefix .. id)
    if kept then
      local record = cmsgpack.unpack(kept)
      if record.total then
        if not record.is_charged then charge_lease(prefix .. id, record, now) end
      else
        redis.call('DEL', prefix .. id)
        for i = 1, #record.lines do record.lines[i] = -1 end -- said by the next settle
        charge(record, now, record.amount)
      end
    end
  end
end

-- The epoch tells a Redis that came back empty from the one before. For a while after it began (`grace`, on the server's own clock) no money is granted and no window is
-- restored: the workers that live say what they have in flight, and their last rows reach the ledger.
local GRACE_US = 1000000
local YOUNG_US = 5000000

local function server_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function epoch_of(key, fresh) -- its name, and for how many microseconds more its grace lasts
  local m = redis.call('HMGET', key, 'id', 'grace')
  if m[1] then
    local grace = tonumber(m[2])
    return m[1], grace > 0 and math.max(grace - server_us(), 0) or 0
  end
  local now, grace = server_us(), 0
  local up_s = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)') or 0)
  if up_s * 1000000 < YOUNG_US then grace = now + GRACE_US end -- it may have been another one just now
  redis.call('HSET', key, 'id', fresh, 'grace', text(grace), 'born', text(now))
  return fresh, math.max(grace - now, 0)
end

local function wait_for_others(key, known, epoch) -- whoever knows another epoch has seen a Redis be lost, on whatever way
  if known == '' or known == epoch then return end
  local m = redis.call('HMGET', key, 'born', 'grace')
  local now = server_us()
  if now - tonumber(m[1] or 0) < YOUNG_US and tonumber(m[2]) == 0 then redis.call('HSET', key, 'grace', text(now + GRACE_US)) end
end

-- A lease is a reservation that its worker draws on: at most 1 % of what is left, and only while that is at least one call's bound.
local RECALL_US = 2000000

local function grow_lease(in_flight, key, id, windows, room, want, bound, now, expires)
  local kept = redis.call('GET', key)
  local lease = kept and cmsgpack.unpack(kept)
  local own = lease and lease.amount or 0
  if lease and (lease.is_charged or lease.is_closed) then return 0 end
  local most = math.floor((room + own) / 100)
  local extra = math.min(want, most) - own
  if most < bound or extra <= 0 then return 0 end
  lease = lease or { amount = 0, total = 0, keys = windows.keys, spans = windows.spans, resets = windows.resets, lines = windows.lines }
  lease.amount = own + extra
  for _, window in ipairs(lease.keys) do
    redis.call('HINCRBY', window, 'r', text(extra))
    redis.call('HINCRBY', window, 'o', text(extra))
  end
  redis.call('SET', key, cmsgpack.pack(lease), 'PX', text(YEAR_MS))
  redis.call('ZADD', in_flight, text(now + expires), id)
  return extra
end
