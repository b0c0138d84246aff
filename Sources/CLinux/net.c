#include "clinux_net.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/icmp6.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// IFA_PROTO came with 5.18; the number is ABI, older headers only lack the name.
#define ATTRIBUTE_PROTO 11

int clinux_interface_find(const char *name, struct clinux_interface *result) {
    struct ifreq request = {0};
    if (strlen(name) >= sizeof request.ifr_name) return -ENODEV;
    strcpy(request.ifr_name, name);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int error = 0;
    memset(result, 0, sizeof *result);
    if (ioctl(fd, SIOCGIFINDEX, &request) < 0) {
        error = -errno;
    } else {
        result->index = request.ifr_ifindex;
        if (ioctl(fd, SIOCGIFFLAGS, &request) < 0) {
            error = -errno;
        } else {
            result->is_up = (request.ifr_flags & IFF_UP) != 0;
            result->is_running = (request.ifr_flags & IFF_RUNNING) != 0;
            int speaks_arp = (request.ifr_flags & (IFF_NOARP | IFF_LOOPBACK)) == 0;
            if (ioctl(fd, SIOCGIFHWADDR, &request) < 0) {
                error = -errno;
            } else if (request.ifr_hwaddr.sa_family == ARPHRD_ETHER && speaks_arp) {
                result->is_ethernet = 1;
                memcpy(result->mac, request.ifr_hwaddr.sa_data, 6);
            }
        }
    }
    close(fd);
    return error;
}

int clinux_netlink_open(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) return -errno;
    struct sockaddr_nl local = {.nl_family = AF_NETLINK};
    // Acknowledgements repeat the request unless capped; capped, those of 64 addresses fit any receive buffer.
    int one = 1;
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

struct address_message {
    struct nlmsghdr header;
    struct ifaddrmsg address;
    char attributes[128];
};

static void append(struct address_message *message, uint16_t type, const void *value, uint16_t length) {
    struct rtattr *attribute = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->header.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(length);
    memcpy(RTA_DATA(attribute), value, length);
    message->header.nlmsg_len = NLMSG_ALIGN(message->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

static void compose(
    struct address_message *message, uint16_t type, uint16_t flags, uint32_t sequence,
    const struct clinux_address *address) {
    memset(message, 0, sizeof *message);
    message->header.nlmsg_type = type;
    message->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message->header.nlmsg_seq = sequence;
    message->header.nlmsg_len = NLMSG_LENGTH(sizeof message->address);
    message->address.ifa_family = address->is_ipv6 ? AF_INET6 : AF_INET;
    message->address.ifa_prefixlen = address->prefix_length;
    message->address.ifa_flags = (uint8_t)address->flags;
    message->address.ifa_index = (uint32_t)address->interface_index;
    uint16_t length = address->is_ipv6 ? 16 : 4;
    append(message, IFA_LOCAL, address->bytes, length);
    append(message, IFA_ADDRESS, address->bytes, length);
    if (type == RTM_DELADDR) return;
    append(message, IFA_FLAGS, &address->flags, sizeof address->flags);
    struct ifa_cacheinfo lifetimes = {
        .ifa_prefered = address->preferred_seconds, .ifa_valid = address->valid_seconds};
    append(message, IFA_CACHEINFO, &lifetimes, sizeof lifetimes);
    if (address->tag != 0) append(message, ATTRIBUTE_PROTO, &address->tag, 1);
    if (!address->is_ipv6 && address->label[0] != 0)
        append(message, IFA_LABEL, address->label, (uint16_t)(strnlen(address->label, 15) + 1));
}

/// Sends one message for each address in one datagram and collects the answers, which the kernel has queued by the time
/// that send returns (rtnetlink works in the sender's context), so that receiving never waits.
static int transact(
    int netlink, uint16_t type, uint16_t flags, uint32_t *sequence, const struct clinux_address *addresses,
    size_t count, int *errors) {
    if (count > CLINUX_ADDRESSES_MAX) return -E2BIG;
    static _Thread_local struct address_message messages[CLINUX_ADDRESSES_MAX];
    struct iovec pieces[CLINUX_ADDRESSES_MAX];
    uint32_t first = *sequence + 1;
    for (size_t i = 0; i < count; i++) {
        compose(&messages[i], type, flags, first + (uint32_t)i, &addresses[i]);
        pieces[i] = (struct iovec){&messages[i], NLMSG_ALIGN(messages[i].header.nlmsg_len)};
        errors[i] = -EIO;
    }
    *sequence += (uint32_t)count;
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct msghdr message = {
        .msg_name = &kernel, .msg_namelen = sizeof kernel, .msg_iov = pieces, .msg_iovlen = count};
    while (sendmsg(netlink, &message, MSG_DONTWAIT) < 0)
        if (errno != EINTR) return -errno;

    size_t answered = 0;
    while (answered < count) {
        _Alignas(struct nlmsghdr) char buffer[8192];
        struct sockaddr_nl sender;
        socklen_t sender_length = sizeof sender;
        ssize_t received =
            recvfrom(netlink, buffer, sizeof buffer, MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_length);
        if (received < 0 && errno == EINTR) continue;
        if (received < 0) return -errno;
        if (sender.nl_pid != 0) continue;  // not the kernel: any process may send to a netlink socket
        int left = (int)received;
        for (struct nlmsghdr *answer = (struct nlmsghdr *)buffer; NLMSG_OK(answer, (unsigned)left);
             answer = NLMSG_NEXT(answer, left)) {
            uint32_t index = answer->nlmsg_seq - first;
            if (answer->nlmsg_type != NLMSG_ERROR || index >= count) continue;
            if (answer->nlmsg_len < NLMSG_LENGTH(sizeof(int))) return -EPROTO;
            errors[index] = ((struct nlmsgerr *)NLMSG_DATA(answer))->error;
            answered++;
        }
    }
    return 0;
}

int clinux_addresses_set(
    int netlink, uint32_t *sequence, const struct clinux_address *addresses, size_t count, int *errors) {
    return transact(netlink, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sequence, addresses, count, errors);
}

int clinux_addresses_remove(
    int netlink, uint32_t *sequence, const struct clinux_address *addresses, size_t count, int *errors) {
    return transact(netlink, RTM_DELADDR, 0, sequence, addresses, count, errors);
}

/// Reads one RTM_NEWADDR; 0 if it is of no family that is known here.
static int parse(const struct nlmsghdr *message, struct clinux_address *result) {
    if (message->nlmsg_len < NLMSG_LENGTH(sizeof(struct ifaddrmsg))) return 0;
    const struct ifaddrmsg *address = NLMSG_DATA(message);
    if (address->ifa_family != AF_INET && address->ifa_family != AF_INET6) return 0;
    memset(result, 0, sizeof *result);
    result->is_ipv6 = address->ifa_family == AF_INET6;
    result->prefix_length = address->ifa_prefixlen;
    result->interface_index = (int32_t)address->ifa_index;
    result->flags = address->ifa_flags;
    result->valid_seconds = result->preferred_seconds = CLINUX_LIFETIME_FOREVER;
    size_t length = result->is_ipv6 ? 16 : 4;
    int have_local = 0;
    int left = (int)IFA_PAYLOAD(message);
    for (const struct rtattr *attribute = IFA_RTA(address); RTA_OK(attribute, left);
         attribute = RTA_NEXT(attribute, left)) {
        size_t payload = RTA_PAYLOAD(attribute);
        const void *data = RTA_DATA(attribute);
        switch (attribute->rta_type) {
            case IFA_LOCAL:
                if (payload >= length) memcpy(result->bytes, data, length);
                have_local = 1;
                break;
            case IFA_ADDRESS:
                if (payload >= length && !have_local) memcpy(result->bytes, data, length);
                break;
            case IFA_FLAGS:
                if (payload >= 4) memcpy(&result->flags, data, 4);
                break;
            case IFA_CACHEINFO:
                if (payload >= sizeof(struct ifa_cacheinfo)) {
                    struct ifa_cacheinfo lifetimes;
                    memcpy(&lifetimes, data, sizeof lifetimes);
                    result->valid_seconds = lifetimes.ifa_valid;
                    result->preferred_seconds = lifetimes.ifa_prefered;
                }
                break;
            case ATTRIBUTE_PROTO:
                if (payload >= 1) memcpy(&result->tag, data, 1);
                break;
            case IFA_LABEL:
                memcpy(result->label, data, payload < 15 ? payload : 15);
                break;
        }
    }
    return 1;
}

int clinux_addresses_list(int netlink, uint32_t *sequence, struct clinux_address *addresses, size_t capacity) {
    struct {
        struct nlmsghdr header;
        struct ifaddrmsg address;
    } request = {
        .header = {
            .nlmsg_len = NLMSG_LENGTH(sizeof(struct ifaddrmsg)),
            .nlmsg_type = RTM_GETADDR,
            .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
            .nlmsg_seq = ++*sequence}};
    while (send(netlink, &request, sizeof request, 0) < 0)
        if (errno != EINTR) return -errno;
    size_t count = 0;
    int interrupted = 0;
    for (;;) {
        _Alignas(struct nlmsghdr) static _Thread_local char buffer[32768];
        struct pollfd ready = {.fd = netlink, .events = POLLIN};
        int polled = poll(&ready, 1, 1000);
        if (polled < 0 && errno == EINTR) continue;
        if (polled < 0) return -errno;
        if (polled == 0) return -ETIMEDOUT;
        struct sockaddr_nl sender;
        socklen_t sender_length = sizeof sender;
        ssize_t received =
            recvfrom(netlink, buffer, sizeof buffer, MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_length);
        if (received < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (received < 0) return -errno;
        if (sender.nl_pid != 0) continue;
        int left = (int)received;
        for (struct nlmsghdr *message = (struct nlmsghdr *)buffer; NLMSG_OK(message, (unsigned)left);
             message = NLMSG_NEXT(message, left)) {
            if (message->nlmsg_seq != *sequence) continue;
            if (message->nlmsg_flags & NLM_F_DUMP_INTR) interrupted = 1;
            if (message->nlmsg_type == NLMSG_DONE) return interrupted ? -EINTR : (int)count;
            if (message->nlmsg_type == NLMSG_ERROR) {
                int error = message->nlmsg_len >= NLMSG_LENGTH(sizeof(int))
                                ? ((struct nlmsgerr *)NLMSG_DATA(message))->error
                                : -EPROTO;
                return error != 0 ? error : -EPROTO;
            }
            struct clinux_address address;
            if (message->nlmsg_type != RTM_NEWADDR || !parse(message, &address)) continue;
            if (count < capacity) addresses[count] = address;
            count++;
        }
    }
}

int clinux_arp_open(void) {
    // Protocol 0: it only sends, and nothing is queued to it.
    int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? -errno : fd;
}

int clinux_arp_announce(int arp, const struct clinux_interface *interface, const uint8_t *address) {
    struct sockaddr_ll everyone = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ARP),
        .sll_ifindex = interface->index,
        .sll_halen = 6};
    memset(everyone.sll_addr, 0xff, 6);
    for (uint8_t operation = ARPOP_REQUEST; operation <= ARPOP_REPLY; operation++) {
        // RFC 826: Ethernet, IPv4, address lengths, operation, sender MAC and IP, target MAC and IP.
        uint8_t packet[28] = {0, 1, 8, 0, 6, 4, 0, operation};
        memcpy(packet + 8, interface->mac, 6);
        memcpy(packet + 14, address, 4);
        if (operation == ARPOP_REPLY) memset(packet + 18, 0xff, 6);
        memcpy(packet + 24, address, 4);
        while (sendto(arp, packet, sizeof packet, 0, (struct sockaddr *)&everyone, sizeof everyone) < 0)
            if (errno != EINTR) return -errno;
    }
    return 0;
}

int clinux_neighbour_open(void) {
    int fd = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6);
    if (fd < 0) return -errno;
    // RFC 4861 7.1.2: receivers drop an advertisement whose hop limit is not 255 (it would have come through a router).
    int hops = 255, off = 0;
    struct icmp6_filter nothing;
    ICMP6_FILTER_SETBLOCKALL(&nothing);
    if (setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof hops) < 0 ||
        setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, &off, sizeof off) < 0 ||
        setsockopt(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &nothing, sizeof nothing) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int clinux_neighbour_announce(int socket, const struct clinux_interface *interface, const uint8_t *address) {
    struct {
        struct nd_neighbor_advert advertisement;
        uint8_t option[8];
    } packet = {0};
    packet.advertisement.nd_na_type = ND_NEIGHBOR_ADVERT;
    packet.advertisement.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
    memcpy(&packet.advertisement.nd_na_target, address, 16);
    packet.option[0] = ND_OPT_TARGET_LINKADDR;
    packet.option[1] = 1;  // in units of 8 bytes
    memcpy(packet.option + 2, interface->mac, 6);

    struct sockaddr_in6 everyone = {.sin6_family = AF_INET6, .sin6_scope_id = (uint32_t)interface->index};
    inet_pton(AF_INET6, "ff02::1", &everyone.sin6_addr);
    struct in6_pktinfo source = {.ipi6_ifindex = (uint32_t)interface->index};
    memcpy(&source.ipi6_addr, address, 16);
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof source)] = {0};
    struct iovec piece = {&packet, sizeof packet};
    struct msghdr message = {
        .msg_name = &everyone,
        .msg_namelen = sizeof everyone,
        .msg_iov = &piece,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_IPV6;
    header->cmsg_type = IPV6_PKTINFO;
    header->cmsg_len = CMSG_LEN(sizeof source);
    memcpy(CMSG_DATA(header), &source, sizeof source);
    while (sendmsg(socket, &message, 0) < 0)
        if (errno != EINTR) return -errno;
    return 0;
}
