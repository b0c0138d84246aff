/// Addresses of network interfaces through rtnetlink, and the announcements that make other machines believe them:
/// gratuitous ARP (AF_PACKET) and unsolicited neighbour advertisements (ICMPv6).
///
/// Functions return 0 or a descriptor, or a negative errno.
#ifndef CLINUX_NET_H
#define CLINUX_NET_H
#include <stddef.h>
#include <stdint.h>

/// An interface as the kernel knows it now; an index does not survive the interface.
struct clinux_interface {
    int index;
    /// Whether it is Ethernet, so that `mac` is meaningful and ARP is spoken.
    int is_ethernet;
    /// IFF_UP and IFF_RUNNING.
    int is_up, is_running;
    uint8_t mac[6];
};
int clinux_interface_find(const char *name, struct clinux_interface *result);

/// One address of an interface.
struct clinux_address {
    /// 4 or 16 bytes, in network order, by `is_ipv6`.
    uint8_t bytes[16];
    uint8_t is_ipv6;
    uint8_t prefix_length;
    /// IFA_PROTO: who added it; 0 when unknown (kernels before 5.18 keep none).
    uint8_t tag;
    int32_t interface_index;
    /// IFA_F_... ; only those below are interpreted here.
    uint32_t flags;
    /// Seconds from now; CLINUX_LIFETIME_FOREVER for an address that stays.
    uint32_t valid_seconds, preferred_seconds;
    /// IPv4 only: "eth0:x", at most 15 characters; empty for none.
    char label[16];
};
#define CLINUX_LIFETIME_FOREVER 0xffffffffu
#define CLINUX_ADDRESS_NODAD 0x02u
#define CLINUX_ADDRESS_NOPREFIXROUTE 0x200u

/// The most addresses that one call takes.
#define CLINUX_ADDRESSES_MAX 64

/// A rtnetlink socket in the network namespace of the calling thread.
int clinux_netlink_open(void);

/// Adds the addresses, or renews flags and lifetimes of those that are there: one message to the kernel, one system call
/// to send it, and the kernel has answered when that returns, so that nothing is waited for.
/// `errors[i]` becomes 0 or a negative errno for each address; the result is negative when the message itself failed.
int clinux_addresses_set(
    int netlink, uint32_t *sequence, const struct clinux_address *addresses, size_t count, int *errors);

/// Removes addresses; the same way. An address that is not there gives -EADDRNOTAVAIL.
int clinux_addresses_remove(
    int netlink, uint32_t *sequence, const struct clinux_address *addresses, size_t count, int *errors);

/// Lists all addresses of all interfaces: how many there are (at most `capacity` are stored), or a negative errno;
/// -EINTR when the list changed meanwhile (ask again), -ETIMEDOUT when the kernel did not answer within a second.
int clinux_addresses_list(int netlink, uint32_t *sequence, struct clinux_address *addresses, size_t capacity);

/// A socket to announce IPv4 addresses with. Needs CAP_NET_RAW.
int clinux_arp_open(void);
/// Broadcasts that `address` (4 bytes) is at the interface's MAC, once as a request and once as a reply: some systems
/// listen only to the one, some only to the other.
int clinux_arp_announce(int arp, const struct clinux_interface *interface, const uint8_t *address);

/// A socket to announce IPv6 addresses with. Needs CAP_NET_RAW.
int clinux_neighbour_open(void);
/// Tells all nodes on the link that `address` (16 bytes) is at the interface's MAC, overriding what they knew.
int clinux_neighbour_announce(int socket, const struct clinux_interface *interface, const uint8_t *address);
#endif
