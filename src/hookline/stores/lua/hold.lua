-- Parallel slots of a Redis that was lost, told to the one there is now. KEYS: one per ceiling. ARGV: now, id, expires_us, then how many slots of each.
local ends = clock(ARGV[1]) + tonumber(ARGV[3])
for i, key in ipairs(KEYS) do
  for slot = 1, tonumber(ARGV[3 + i]) do redis.call('ZADD', key, text(ends), ARGV[2] .. '/' .. slot) end
  redis.call('PEXPIRE', key, text(math.ceil(tonumber(ARGV[3]) / 1000) + 1000))
end
return 1
