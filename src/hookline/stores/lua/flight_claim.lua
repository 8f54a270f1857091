-- KEYS: what it holds, who waits, what was shown. ARGV: claim, its ms, ms of waiting. Answers what it holds, or nil: claimed.
local held = redis.call('GET', KEYS[1])
if held then
  if string.sub(held, 1, 1) ~= '=' then redis.call('SET', KEYS[2], '1', 'PX', ARGV[3]) end
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2], KEYS[3])
return nil
