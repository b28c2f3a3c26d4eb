# Boots a machine: boot NAME NETWORK LOWER UPPER WORK ROOT, where NETWORK is empty or an option of systemd-nspawn. Runs in mount and process-id namespaces of its own, so that the overlay
# and everything in the machine vanish with it.
set -eu
name=$1 network=$2 lower=$3 upper=$4 work=$5 root=$6

# A control group of its own in the hierarchies that systemd uses: with a shared one, the managers of two machines would
# kill each other's services.
while IFS=: read -r _ controllers path; do
    case $controllers in
        '') mount=/sys/fs/cgroup; [ ! -d /sys/fs/cgroup/unified ] || mount=/sys/fs/cgroup/unified ;;
        name=systemd) mount=/sys/fs/cgroup/systemd ;;
        *) continue ;;
    esac
    group=$mount${path%/}/$name
    mkdir -p "$group"
    echo 0 > "$group/cgroup.procs"
done < /proc/self/cgroup

# redirect_dir lets a directory of the lower layer be renamed, as on a plain file system.
mount -t overlay rekindle -o "lowerdir=$lower,upperdir=$upper,workdir=$work,redirect_dir=on" "$root"
# Without its filter of system calls, which a host has not: it refuses fanotify.
exec env SYSTEMD_SECCOMP=0 systemd-nspawn --boot --quiet --directory="$root" --machine="$name" --register=no --keep-unit \
    --resolv-conf=off ${network:+"$network"} --timezone=off --link-journal=no --console=pipe < /dev/null
