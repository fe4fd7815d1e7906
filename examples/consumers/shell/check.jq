# Warns of a new epoch and of positions that are gone: XREAD itself says nothing.

# What to ask Redis: each market's epoch, and what stands at or behind each position.
def questions($prefix; $all; $read; $position):
  ($all | map(.[1:] | split("}")[0] | split(":")[1]) | unique[]
    | {market: ., command: "GET {\($prefix):\(.)}:epoch"}),
  ($read | keys[] | select($position.last[.])
    | {stream: ., command: "XRANGE \(.) \($position.last[.]) + COUNT 1"});

# The position with `warnings`. Of each answer its first line comes in: (nil), "text",
# (empty array), or 1) 1) "id".
def judged($questions; $position):
  [$questions, [inputs]] | transpose
  | reduce .[] as [$asked, $answer] ($position + {warnings: []};
      ($answer | if contains("\"") then split("\"")[1] else null end) as $found
      | if $asked.market then
          .epochs[$asked.market] as $known
          | if $known and $found and $known != $found then
              .warnings += ["\($asked.market): new epoch \($found) after \($known): "
                + "ticks may be lost or told again"]
            else . end
          | if $found then .epochs[$asked.market] = $found else . end
        else
          .last[$asked.stream] as $last
          | if $found != $last and .told_gone[$asked.stream] != $last then
              .told_gone[$asked.stream] = $last
              | .warnings += ["\($asked.stream): position \($last) is gone, "
                + "\($found // "nothing") follows: ticks may be missing"]
            else . end
        end);
