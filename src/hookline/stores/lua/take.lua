-- KEYS: one per ceiling. ARGV: limit, span_us of each (the same for every call), then now, id, expires_us, then the amount of each.
-- Granted: 1, then remaining, reset_us, entry, entry's beginning of each. Refused: 0, the worst (from 0), its retry_us (-1: never), then remaining, reset_us of each.
local own = #KEYS * 2
local now, id, expires = clock(ARGV[own + 1]), ARGV[own + 2], tonumber(ARGV[own + 3])
local limits, spans, amounts, used, windows = {}, {}, {}, {}, {}
local fits = true
for i, key in ipairs(KEYS) do
  local limit, span, amount = tonumber(ARGV[i * 2 - 1]), tonumber(ARGV[i * 2]), tonumber(ARGV[own + 3 + i])
  limits[i], spans[i], amounts[i] = limit, span, amount
  if span > 0 then
    windows[i] = open(key, span, now)
    used[i] = windows[i].u
  else -- held in parallel: a member per slot, so that those of dead workers leave by their score
    redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
    used[i] = redis.call('ZCARD', key)
  end
  if used[i] + amount > limit then fits = false end
end
if not fits then
  local worst, worst_us, answer = 1, -1, { 0, 0, 0 }
  for i in ipairs(KEYS) do
    local is_window = spans[i] > 0
    answer[#answer + 1] = math.max(limits[i] - used[i], 0)
    answer[#answer + 1] = is_window and reset_us(windows[i], now) or 0
    if used[i] + amounts[i] > limits[i] then
      local after = 1000000 -- when a parallel slot comes free is not known
      if amounts[i] > limits[i] then
        after = math.huge
      elseif is_window then
        after = fits_after_us(windows[i], now, limits[i] - amounts[i])
        if after < 0 then after = math.huge end
      end
      if after > worst_us then worst, worst_us = i, after end
    end
  end
  answer[2], answer[3] = worst - 1, worst_us == math.huge and -1 or worst_us
  return answer
end
local answer = { 1 }
for i, key in ipairs(KEYS) do
  local w, amount = windows[i], amounts[i]
  local reset, index, first = 0, -1, 0
  if w then
    reset = amount ~= 0 and w.span or reset_us(w, now)
    index, first = add(w, now, amount)
    redis.call('PEXPIRE', key, text(math.ceil(w.span * 62 / 60000) + 1000))
  elseif amount > 0 then
    for slot = 1, amount do redis.call('ZADD', key, text(now + expires), id .. '/' .. slot) end
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    redis.call('PEXPIRE', key, text(math.ceil((tonumber(last[2]) - now) / 1000) + 1000))
  end
  for _, n in ipairs({ limits[i] - used[i] - amount, reset, index, first }) do answer[#answer + 1] = n end
end
return answer
