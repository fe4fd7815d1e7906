# Reads, line by line, what `redis-cli --no-raw XREAD` prints:
#
#   1) 1) "{qmt:SH}:tick:600519.SH"
#      2) 1) 1) "1763688600000-0"
#            2) 1) "t1"
#               2) "\xdc\x00\x18..."
#
# Each string stands in a line of its own, so their order tells what they are.

include "wire";

def entries:
  foreach (inputs | select(contains("\"")) | .[index("\""):]) as $word ({};
    .whole = false
    | if .next == "value" then .value = $word | .next = null | .whole = true
      elif $word | startswith("\"{") then .stream = ($word | fromjson)
      elif $word | test("^\"[0-9]+-[0-9]+\"") then .id = ($word | fromjson)
      else .field = ($word | fromjson) | .next = "value" end;
    select(.whole));

# An entry of a feed with bars (c1) has no ticks; what stands beside a batch (sizes) is passed over.
def ticks:
  if .field == "t1" then
    {code: (.stream | split(":tick:")[1]), id} + (.value | quoted | decode("t1"))
  elif .field == "b1" then .value | quoted | decode("b1")[]
  else empty end;

# First {stream: last id}, then the ticks.
def read_reply:
  [entries] as $entries
  | reduce $entries[] as $one ({}; .[$one.stream] = $one.id),
    ($entries[] | ticks);
