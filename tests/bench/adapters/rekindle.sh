# rekindle, for a harness that times configuration tools doing the same jobs on one machine. POSIX sh.
#
# Link it into the harness's adapters/, whose lib.sh calls the functions below and says what it expects of each:
#   ln -s "$PWD/tests/bench/adapters/rekindle.sh" HARNESS/adapters/
# REKINDLE names the program to measure; unless it is set, `install` builds it from the repository that this file is in.
#
# Both services of rekindle count as its daemon: the agent guards, the courier has pulled the policy.
. "${0%/*}/lib.sh"

# No program may run between the call of `apply` and the start of what it times, so `policy` leaves a link.
PROGRAM=$STATE/rekindle
CONFIG=$STATE/agent.toml

repository() { realpath "$(dirname "$(realpath "$0")")/../../.."; }

install() {
	[ -z "${REKINDLE:-}" ] || return 0
	cd "$(repository)"
	cargo build --locked --release -p rekindle
}

program() { echo "${REKINDLE:-${CARGO_TARGET_DIR:-$(repository)/target}/release/rekindle}"; }

version() { "$(program)" --version; }

# A tree is declared file by file, as everything is in rekindle: it has no recursive resource.
supports() { echo tree each users packages mixed daemon; }

policy() {
	ln -sfn "$(program)" "$PROGRAM"
	# Whatever an earlier workload left would be history, and a policy in force that nobody asked for.
	rm -rf "$STATE/policy" "$STATE/policy.git" "$STATE/state" "$STATE/run"
	for directory in policy run state state/outbox state/inbox state/courier state/policy; do
		mkdir -m 0700 -p "$STATE/$directory"
	done
	python3 - "$STATE/policy" <<'PY'
import json, os, shutil, sys

policy, workload = sys.argv[1], json.load(open(os.environ["W"] + "/workload.json"))
text = ['[policy]', 'name = "bench"']

def table(kind, name, **keys):
    # A JSON string of plain text is a TOML string, and a list of them a TOML list.
    text.append("\n[%s.%s]" % (kind, json.dumps(name)))
    text.extend("%s = %s" % (key, json.dumps(value)) for key, value in keys.items())

if workload["files"]:
    shutil.copytree(os.environ["W"] + "/src", policy + "/src")
    if os.environ["STYLE"] == "tree":
        for directory in [workload["target"]] + workload["dirs"]:
            table("directory", directory, owner="root", group="root", mode="0755")
for f in workload["files"]:
    table("file", f["path"], source="src/" + f["rel"], owner=f["owner"], group=f["group"], mode=f["mode"])
for f in workload["inline"]:
    table("file", f["path"], content=f["content"], owner=f["owner"], group=f["group"], mode=f["mode"])
for u in workload["users"]:
    table("group", u["group"], gid=u["gid"])
    table("user", u["name"], uid=u["uid"], group=u["group"], home=u["home"], shell=u["shell"],
          comment=u["comment"], authorized_keys=[u["key"]])
for p in workload["packages"]:
    table("package", p)
with open(policy + "/policy.toml", "w") as out:
    out.write("\n".join(text) + "\n")
PY
	cat >"$CONFIG" <<END
[policy]
url   = "file://$STATE/policy.git"
trust = "none"

# The harness drifts the same few files again and again: that is no fight to be given up.
[health]
flapping = { repairs = 1000000, within = "1m" }

[paths]
state   = "$STATE/state"
runtime = "$STATE/run"
END
	chmod 0600 "$CONFIG"
}

apply() { exec "$PROGRAM" --config "$CONFIG" apply --policy "$STATE/policy"; }

daemon() {
	git() { command git --git-dir="$STATE/policy.git" --work-tree="$STATE/policy" "$@"; }
	git init -q
	git symbolic-ref HEAD refs/heads/main
	git add --all
	git -c user.name=bench -c user.email=bench@example.org commit -q -m bench
	"$PROGRAM" --config "$CONFIG" courier &
	exec "$PROGRAM" --config "$CONFIG" agent
}

ready() {
	"$PROGRAM" --config "$CONFIG" --json status |
		python3 -c 'import json, sys; s = json.load(sys.stdin); sys.exit(s["health"]["state"] != "converged" or not s["policy"])'
}

run_adapter "$@"
