-- Notices that processes leave for each other. KEYS: board. ARGV: now, then name, version, ttl_us, value of each that is told.
-- Of two with one name the one with the higher version stays; the same one told again stays longer. Answers: name, version, value of all there are.
local now, answer = clock(ARGV[1]), {}
for i = 2, #ARGV, 4 do
  local kept = redis.call('HGET', KEYS[1], ARGV[i])
  local known = kept and cmsgpack.unpack(kept)
  local version = tonumber(ARGV[i + 1])
  if not known or known[2] <= now or version >= known[1] then
    redis.call('HSET', KEYS[1], ARGV[i], cmsgpack.pack({ version, now + tonumber(ARGV[i + 2]), ARGV[i + 3] }))
  end
end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local known = cmsgpack.unpack(all[i + 1])
  if known[2] <= now then
    redis.call('HDEL', KEYS[1], all[i])
  else
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = all[i], text(known[1]), known[3]
  end
end
if #all > 0 then redis.call('PEXPIRE', KEYS[1], text(2 * DAY_MS)) end
return answer
