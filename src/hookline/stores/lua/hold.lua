-- Parallel slots of calls in flight that are needed longer, or that a Redis which was lost knew. KEYS: one per ceiling. ARGV: now, id, expires_us, then how many slots of each.
local now = clock(ARGV[1])
for i, key in ipairs(KEYS) do
  for slot = 1, tonumber(ARGV[3 + i]) do redis.call('ZADD', key, text(now + tonumber(ARGV[3])), ARGV[2] .. '/' .. slot) end
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('PEXPIRE', key, text(math.ceil((tonumber(last[2]) - now) / 1000) + 1000))
end
return 1
