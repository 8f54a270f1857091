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

-- A budget is a hash: s = spent in a fixed window, r = reserved, l = whether its alert is out, w = span of a rolling one
-- (its entries as in a window). `resets` < 0: never.
local function spent_in(key, span, now)
  if span > 0 then return open(key, span, now).u end
  return tonumber(redis.call('HGET', key, 's') or 0)
end

local function spend(key, span, now, amount)
  if span > 0 then add(open(key, span, now), now, amount) else redis.call('HINCRBY', key, 's', text(amount)) end
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
    local reserved = tonumber(redis.call('HGET', key, 'r') or 0)
    redis.call('HSET', key, 'r', text(math.max(reserved - record.amount, 0)))
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

-- Reservations whose worker died are charged whole by whoever comes next. Bounded, so that no decision waits for a thousand of them.
local function charge_expired(in_flight, prefix, now)
  local ids = redis.call('ZRANGEBYSCORE', in_flight, '-inf', text(now), 'LIMIT', 0, 100)
  for _, id in ipairs(ids) do
    redis.call('ZREM', in_flight, id)
    local kept = redis.call('GET', prefix .. id)
    if kept then
      redis.call('DEL', prefix .. id)
      local record = cmsgpack.unpack(kept)
      for i = 1, #record.lines do record.lines[i] = -1 end -- said by the next settle
      charge(record, now, record.amount)
    end
  end
end
