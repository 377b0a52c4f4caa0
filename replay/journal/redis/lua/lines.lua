-- Functions for the log of decisions, prepended to the scripts that write to it.
local lines, anchor = P .. ':lines', P .. ':anchor'
local function newest_line()
  return math.max(last(lines), tonumber(redis.call('HGET', anchor, 'number') or '0'))
end
local function write_line(number, text)
  redis.call('XADD', lines, number .. '-0', 'text', text, 'sum', proof('line ' .. number,
    {'text', text}))
end
