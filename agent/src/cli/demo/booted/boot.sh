# Boots a machine: boot NAME IMAGE DISK REPOSITORY GROUP… Runs in mount and process-id namespaces of its own, so that the
# overlay and everything in the machine vanish with it.
set -eu
name=$1 image=$2 disk=$3 repository=$4
shift 4

# With a control group shared with others, the machine's service manager would kill theirs.
for group; do
    echo 0 > "$group/cgroup.procs"
done

# redirect_dir lets a directory of the image be renamed, as on a plain file system.
mount -t overlay "$name" -o "lowerdir=$image,upperdir=$disk/upper,workdir=$disk/work,redirect_dir=on" "$disk/root"
exec systemd-nspawn --boot --quiet --directory="$disk/root" --machine="$name" --hostname=demo-host \
    --bind-ro="$repository:/srv/policy.git" --register=no --keep-unit \
    --resolv-conf=off --timezone=off --link-journal=no --console=pipe < /dev/null
