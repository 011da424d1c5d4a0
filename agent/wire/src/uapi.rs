//! The kernel's numbers of netfilter, each defined once, under the kernel's own names.
//!
//! They are from `include/uapi/linux/netfilter/nf_tables.h` unless a comment names another header. They are part of
//! the interface to user space and never change. A comment gives the first version for numbers that are newer than the
//! oldest supported kernel. Those of netlink itself are in [`crate::message`] and
//! [`crate::answer`].

macro_rules! numbers {
    ($(#[doc = $origin:literal] $kind:ty { $($name:ident = $value:expr,)* })*) => {
        $($(#[doc = $origin] pub const $name: $kind = $value;)*)*
    };
}

numbers! {
    /// `include/uapi/linux/netfilter/nfnetlink.h`: the upper byte of a message's type.
    u16 {
        NFNL_SUBSYS_CTNETLINK = 1,
        NFNL_SUBSYS_IPSET = 6,
        NFNL_SUBSYS_NFTABLES = 10,
    }
    /// `include/uapi/linux/netfilter/nfnetlink.h`: the marks around a batch, which are separate types.
    u16 {
        NFNL_MSG_BATCH_BEGIN = 16,
        NFNL_MSG_BATCH_END = 17,
    }
    /// A family of `include/uapi/linux/netfilter.h`: IPv4 and IPv6 in one table.
    u8 {
        NFPROTO_INET = 1,
    }
    /// `enum nf_dev_hooks` of `include/uapi/linux/netfilter.h`
    u32 {
        NF_NETDEV_INGRESS = 0,
    }
    /// Verdicts of `include/uapi/linux/netfilter.h`.
    i32 {
        NF_DROP = 0,
        NF_ACCEPT = 1,
    }
    /// `include/uapi/linux/netfilter/nf_nat.h`
    u32 {
        NF_NAT_RANGE_MAP_IPS = 0x1,
        NF_NAT_RANGE_PROTO_SPECIFIED = 0x2,
        NF_NAT_RANGE_PROTO_RANDOM_FULLY = 0x10,
    }
    /// `include/uapi/linux/rtnetlink.h`: an address of this node.
    u32 {
        RTN_LOCAL = 2,
    }
    /// `include/uapi/linux/icmp.h`, `icmpv6.h`
    u8 {
        ICMP_PORT_UNREACH = 3,
        ICMPV6_PORT_UNREACH = 4,
    }
    /// `include/uapi/linux/netfilter/nf_conntrack_tuple_common.h`
    u8 {
        IP_CT_DIR_ORIGINAL = 0,
        IP_CT_DIR_REPLY = 1,
    }
    /// `include/uapi/linux/netfilter/nf_conntrack_common.h`: the destination was translated; a flow table has it.
    u32 {
        IPS_DST_NAT = 0x20,
        IPS_OFFLOAD = 0x4000,
    }
    /// `enum cntl_msg_types` of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, as what follows.
    u8 {
        IPCTNL_MSG_CT_NEW = 0,
        IPCTNL_MSG_CT_GET = 1,
        IPCTNL_MSG_CT_DELETE = 2,
    }
    /// `enum ctattr_type`
    u16 {
        CTA_TUPLE_ORIG = 1,
        CTA_TUPLE_REPLY = 2,
        CTA_STATUS = 3,
        CTA_PROTOINFO = 4,
        CTA_TIMEOUT = 7,
        CTA_COUNTERS_ORIG = 9,
        CTA_COUNTERS_REPLY = 10,
        CTA_ID = 12,
        CTA_ZONE = 18,
        CTA_FILTER = 25,
    }
    /// `enum ctattr_tuple`
    u16 {
        CTA_TUPLE_IP = 1,
        CTA_TUPLE_PROTO = 2,
        CTA_TUPLE_ZONE = 3,
    }
    /// `enum ctattr_ip`
    u16 {
        CTA_IP_V4_SRC = 1,
        CTA_IP_V4_DST = 2,
        CTA_IP_V6_SRC = 3,
        CTA_IP_V6_DST = 4,
    }
    /// `enum ctattr_l4proto`
    u16 {
        CTA_PROTO_NUM = 1,
        CTA_PROTO_SRC_PORT = 2,
        CTA_PROTO_DST_PORT = 3,
    }
    /// `enum ctattr_protoinfo`, and of TCP `enum ctattr_protoinfo_tcp`
    u16 {
        CTA_PROTOINFO_TCP = 1,
        CTA_PROTOINFO_TCP_STATE = 1,
    }
    /// `enum ctattr_counters`
    u16 {
        CTA_COUNTERS_PACKETS = 1,
        CTA_COUNTERS_BYTES = 2,
    }
    /// `enum ctattr_filter`
    u16 {
        CTA_FILTER_ORIG_FLAGS = 1,
    }
    /// `CTA_FILTER_F_*` of `net/netfilter/nf_internals.h`: the fields that a filter compares (Linux 5.8).
    u32 {
        CT_FILTER_IP_DST = 1 << 1,
        CT_FILTER_PROTO_NUM = 1 << 3,
        CT_FILTER_PROTO_DST_PORT = 1 << 5,
    }
    /// `enum ipset_cmd` of `include/uapi/linux/netfilter/ipset/ip_set.h`, as what follows.
    u16 {
        IPSET_CMD_DESTROY = 3,
        IPSET_CMD_LIST = 7,
    }
    /// The attributes of ipset's commands.
    u16 {
        IPSET_ATTR_PROTOCOL = 1,
        IPSET_ATTR_SETNAME = 2,
        IPSET_ATTR_FLAGS = 6,
    }
    /// `enum ipset_cmd_flags`: names only, no elements.
    u32 {
        IPSET_FLAG_LIST_SETNAME = 1 << 1,
    }
    /// `enum ipset_errno`: a rule still refers to the set.
    i32 {
        IPSET_ERR_BUSY = 4100,
    }
    /// `include/uapi/linux/rtnetlink.h`
    u16 {
        RTM_DELLINK = 17,
    }
    /// `include/uapi/linux/if_link.h`
    u16 {
        IFLA_IFNAME = 3,
    }
    /// `include/uapi/linux/genetlink.h`: the type of messages to the controller.
    u16 {
        GENL_ID_CTRL = 16,
    }
    /// `include/uapi/linux/genetlink.h`: a command of the controller.
    u8 {
        CTRL_CMD_GETFAMILY = 3,
    }
    /// `include/uapi/linux/genetlink.h`: attributes of the controller.
    u16 {
        CTRL_ATTR_FAMILY_ID = 1,
        CTRL_ATTR_FAMILY_NAME = 2,
    }
    /// `include/uapi/linux/ip_vs.h`: a command of IPVS.
    u8 {
        IPVS_CMD_FLUSH = 17,
    }
    /// `enum nft_registers`
    u32 {
        NFT_REG_VERDICT = 0,
    }
    /// `enum nft_verdicts`
    i32 {
        NFT_JUMP = -3,
        NFT_GOTO = -4,
        NFT_RETURN = -5,
        NFT_CONTINUE = -1,
    }
    /// `enum nf_tables_msg_types`
    u8 {
        NFT_MSG_NEWTABLE = 0,
        NFT_MSG_GETTABLE = 1,
        NFT_MSG_DELTABLE = 2,
        NFT_MSG_NEWCHAIN = 3,
        NFT_MSG_GETCHAIN = 4,
        NFT_MSG_DELCHAIN = 5,
        NFT_MSG_NEWRULE = 6,
        NFT_MSG_GETRULE = 7,
        NFT_MSG_DELRULE = 8,
        NFT_MSG_NEWSET = 9,
        NFT_MSG_GETSET = 10,
        NFT_MSG_DELSET = 11,
        NFT_MSG_NEWSETELEM = 12,
        NFT_MSG_GETSETELEM = 13,
        NFT_MSG_DELSETELEM = 14,
        NFT_MSG_NEWGEN = 15,
        NFT_MSG_GETGEN = 16,
        NFT_MSG_TRACE = 17,
        NFT_MSG_NEWOBJ = 18,
        NFT_MSG_GETOBJ = 19,
        NFT_MSG_DELOBJ = 20,
        NFT_MSG_NEWFLOWTABLE = 22,
        NFT_MSG_GETFLOWTABLE = 23,
        NFT_MSG_DELFLOWTABLE = 24,
        // Since Linux 6.3.
        NFT_MSG_DESTROYSETELEM = 30,
    }
    /// `enum nft_list_attributes`
    u16 {
        NFTA_LIST_ELEM = 1,
    }
    /// `enum nft_hook_attributes`
    u16 {
        NFTA_HOOK_HOOKNUM = 1,
        NFTA_HOOK_PRIORITY = 2,
    }
    /// `enum nft_table_flags`
    u32 {
        NFT_TABLE_F_DORMANT = 0x1,
        NFT_TABLE_F_OWNER = 0x2,
        // Since Linux 6.9.
        NFT_TABLE_F_PERSIST = 0x4,
    }
    /// `enum nft_table_attributes`
    u16 {
        NFTA_TABLE_NAME = 1,
        NFTA_TABLE_FLAGS = 2,
        // Since Linux 5.10.
        NFTA_TABLE_USERDATA = 6,
        // Since Linux 5.12.
        NFTA_TABLE_OWNER = 7,
    }
    /// `enum nft_chain_flags`
    u32 {
        NFT_CHAIN_BINDING = 0x4,
    }
    /// `enum nft_chain_attributes`
    u16 {
        NFTA_CHAIN_TABLE = 1,
        NFTA_CHAIN_NAME = 3,
        NFTA_CHAIN_HOOK = 4,
        NFTA_CHAIN_POLICY = 5,
        NFTA_CHAIN_TYPE = 7,
        NFTA_CHAIN_FLAGS = 10,
    }
    /// `enum nft_target_attributes` (`nf_tables_compat.h`): a target of iptables.
    u16 {
        NFTA_TARGET_NAME = 1,
    }
    /// `enum nft_rule_attributes`
    u16 {
        NFTA_RULE_TABLE = 1,
        NFTA_RULE_CHAIN = 2,
        NFTA_RULE_HANDLE = 3,
        NFTA_RULE_EXPRESSIONS = 4,
    }
    /// `enum nft_set_flags`
    u32 {
        NFT_SET_ANONYMOUS = 0x1,
        NFT_SET_INTERVAL = 0x4,
        NFT_SET_MAP = 0x8,
        NFT_SET_TIMEOUT = 0x10,
        NFT_SET_EVAL = 0x20,
        NFT_SET_CONCAT = 0x80,
        NFT_SET_EXPR = 0x100,
    }
    /// `enum nft_set_desc_attributes`
    u16 {
        NFTA_SET_DESC_SIZE = 1,
        NFTA_SET_DESC_CONCAT = 2,
    }
    /// `enum nft_set_field_attributes`
    u16 {
        NFTA_SET_FIELD_LEN = 1,
    }
    /// `enum nft_set_attributes`
    u16 {
        NFTA_SET_TABLE = 1,
        NFTA_SET_NAME = 2,
        NFTA_SET_FLAGS = 3,
        NFTA_SET_KEY_TYPE = 4,
        NFTA_SET_KEY_LEN = 5,
        NFTA_SET_DATA_TYPE = 6,
        NFTA_SET_DATA_LEN = 7,
        NFTA_SET_DESC = 9,
        NFTA_SET_ID = 10,
        NFTA_SET_TIMEOUT = 11,
        NFTA_SET_GC_INTERVAL = 12,
        NFTA_SET_USERDATA = 13,
        NFTA_SET_EXPR = 17,
        // Since Linux 6.16.
        NFTA_SET_COUNT = 20,
    }
    /// `enum nft_set_elem_flags`
    u32 {
        NFT_SET_ELEM_INTERVAL_END = 0x1,
        NFT_SET_ELEM_CATCHALL = 0x2,
    }
    /// `enum nft_set_elem_attributes`
    u16 {
        NFTA_SET_ELEM_KEY = 1,
        NFTA_SET_ELEM_DATA = 2,
        NFTA_SET_ELEM_FLAGS = 3,
        NFTA_SET_ELEM_TIMEOUT = 4,
        NFTA_SET_ELEM_EXPIRATION = 5,
        NFTA_SET_ELEM_USERDATA = 6,
        NFTA_SET_ELEM_EXPR = 7,
        NFTA_SET_ELEM_KEY_END = 10,
        NFTA_SET_ELEM_EXPRESSIONS = 11,
    }
    /// `enum nft_set_elem_list_attributes`
    u16 {
        NFTA_SET_ELEM_LIST_TABLE = 1,
        NFTA_SET_ELEM_LIST_SET = 2,
        NFTA_SET_ELEM_LIST_ELEMENTS = 3,
    }
    /// `enum nft_data_types`
    u32 {
        NFT_DATA_VERDICT = 0xffff_ff00,
    }
    /// `enum nft_data_attributes`
    u16 {
        NFTA_DATA_VALUE = 1,
        NFTA_DATA_VERDICT = 2,
    }
    /// `enum nft_verdict_attributes`
    u16 {
        NFTA_VERDICT_CODE = 1,
        NFTA_VERDICT_CHAIN = 2,
    }
    /// `enum nft_expr_attributes`
    u16 {
        NFTA_EXPR_NAME = 1,
        NFTA_EXPR_DATA = 2,
    }
    /// `enum nft_immediate_attributes`
    u16 {
        NFTA_IMMEDIATE_DREG = 1,
        NFTA_IMMEDIATE_DATA = 2,
    }
    /// `enum nft_bitwise_ops`: `(value & mask) ^ xor`. Headers since Linux 6.13 call it `NFT_BITWISE_MASK_XOR`.
    u32 {
        NFT_BITWISE_BOOL = 0,
    }
    /// `enum nft_bitwise_attributes`
    u16 {
        NFTA_BITWISE_SREG = 1,
        NFTA_BITWISE_DREG = 2,
        NFTA_BITWISE_LEN = 3,
        NFTA_BITWISE_MASK = 4,
        NFTA_BITWISE_XOR = 5,
        NFTA_BITWISE_OP = 6,
    }
    /// `enum nft_cmp_ops`
    u32 {
        NFT_CMP_EQ = 0,
        NFT_CMP_NEQ = 1,
        NFT_CMP_GT = 4,
    }
    /// `enum nft_cmp_attributes`
    u16 {
        NFTA_CMP_SREG = 1,
        NFTA_CMP_OP = 2,
        NFTA_CMP_DATA = 3,
    }
    /// `enum nft_lookup_flags`
    u32 {
        NFT_LOOKUP_F_INV = 0x1,
    }
    /// `enum nft_lookup_attributes`
    u16 {
        NFTA_LOOKUP_SET = 1,
        NFTA_LOOKUP_SREG = 2,
        NFTA_LOOKUP_DREG = 3,
        NFTA_LOOKUP_FLAGS = 5,
    }
    /// `enum nft_dynset_ops`
    u32 {
        NFT_DYNSET_OP_UPDATE = 1,
    }
    /// `enum nft_dynset_attributes`
    u16 {
        NFTA_DYNSET_SET_NAME = 1,
        NFTA_DYNSET_OP = 3,
        NFTA_DYNSET_SREG_KEY = 4,
        NFTA_DYNSET_SREG_DATA = 5,
        NFTA_DYNSET_TIMEOUT = 6,
        NFTA_DYNSET_FLAGS = 9,
    }
    /// `enum nft_payload_bases`
    u32 {
        NFT_PAYLOAD_NETWORK_HEADER = 1,
        NFT_PAYLOAD_TRANSPORT_HEADER = 2,
    }
    /// `enum nft_payload_attributes`
    u16 {
        NFTA_PAYLOAD_DREG = 1,
        NFTA_PAYLOAD_BASE = 2,
        NFTA_PAYLOAD_OFFSET = 3,
        NFTA_PAYLOAD_LEN = 4,
    }
    /// `enum nft_meta_keys`
    u32 {
        NFT_META_PRIORITY = 2,
        NFT_META_IIF = 4,
        NFT_META_IIFNAME = 6,
        NFT_META_OIFNAME = 7,
        NFT_META_NFTRACE = 12,
        NFT_META_L4PROTO = 16,
    }
    /// `enum nft_meta_attributes`
    u16 {
        NFTA_META_DREG = 1,
        NFTA_META_KEY = 2,
        NFTA_META_SREG = 3,
    }
    /// `enum nft_ct_keys`
    u32 {
        NFT_CT_STATE = 0,
        NFT_CT_STATUS = 2,
        NFT_CT_PROTO_SRC = 11,
        NFT_CT_PROTO_DST = 12,
        NFT_CT_PKTS = 14,
        NFT_CT_SRC_IP = 19,
        NFT_CT_DST_IP = 20,
        NFT_CT_SRC_IP6 = 21,
        NFT_CT_DST_IP6 = 22,
    }
    /// `enum nft_ct_attributes`
    u16 {
        NFTA_CT_DREG = 1,
        NFTA_CT_KEY = 2,
        NFTA_CT_DIRECTION = 3,
    }
    /// `enum nft_limit_attributes`
    u16 {
        NFTA_LIMIT_RATE = 1,
        NFTA_LIMIT_UNIT = 2,
        NFTA_LIMIT_BURST = 3,
        NFTA_LIMIT_TYPE = 4,
    }
    /// `enum nft_trace_types`
    u32 {
        NFT_TRACETYPE_POLICY = 1,
        NFT_TRACETYPE_RETURN = 2,
        NFT_TRACETYPE_RULE = 3,
    }
    /// `enum nft_trace_attributes`
    u16 {
        NFTA_TRACE_TABLE = 1,
        NFTA_TRACE_CHAIN = 2,
        NFTA_TRACE_TYPE = 4,
        NFTA_TRACE_VERDICT = 5,
        NFTA_TRACE_ID = 6,
        NFTA_TRACE_NETWORK_HEADER = 8,
        NFTA_TRACE_TRANSPORT_HEADER = 9,
        NFTA_TRACE_IIF = 10,
        NFTA_TRACE_POLICY = 16,
    }
    /// `enum nft_counter_attributes`
    u16 {
        NFTA_COUNTER_BYTES = 1,
        NFTA_COUNTER_PACKETS = 2,
    }
    /// `enum nft_reject_types`
    u32 {
        NFT_REJECT_ICMP_UNREACH = 0,
        NFT_REJECT_TCP_RST = 1,
    }
    /// `enum nft_reject_attributes`
    u16 {
        NFTA_REJECT_TYPE = 1,
        NFTA_REJECT_ICMP_CODE = 2,
    }
    /// `enum nft_nat_types`
    u32 {
        NFT_NAT_DNAT = 1,
    }
    /// `enum nft_nat_attributes`
    u16 {
        NFTA_NAT_TYPE = 1,
        NFTA_NAT_FAMILY = 2,
        NFTA_NAT_REG_ADDR_MIN = 3,
        NFTA_NAT_REG_ADDR_MAX = 4,
        NFTA_NAT_REG_PROTO_MIN = 5,
        NFTA_NAT_REG_PROTO_MAX = 6,
        NFTA_NAT_FLAGS = 7,
    }
    /// `enum nft_masq_attributes`
    u16 {
        NFTA_MASQ_FLAGS = 1,
    }
    /// `enum nft_gen_attributes`
    u16 {
        NFTA_GEN_ID = 1,
        NFTA_GEN_PROC_PID = 2,
        NFTA_GEN_PROC_NAME = 3,
    }
    /// `enum nft_fib_attributes`
    u16 {
        NFTA_FIB_DREG = 1,
        NFTA_FIB_RESULT = 2,
        NFTA_FIB_FLAGS = 3,
    }
    /// `enum nft_fib_result`
    u32 {
        NFT_FIB_RESULT_ADDRTYPE = 3,
    }
    /// `enum nft_fib_flags`
    u32 {
        NFTA_FIB_F_SADDR = 0x1,
        NFTA_FIB_F_DADDR = 0x2,
    }
    /// `enum nft_object_attributes`
    u16 {
        NFTA_OBJ_NAME = 2,
        NFTA_OBJ_TYPE = 3,
    }
    /// `enum nft_flowtable_flags`
    u32 {
        // Since Linux 5.7.
        NFT_FLOWTABLE_COUNTER = 0x2,
    }
    /// `enum nft_flowtable_attributes`
    u16 {
        NFTA_FLOWTABLE_TABLE = 1,
        NFTA_FLOWTABLE_NAME = 2,
        NFTA_FLOWTABLE_HOOK = 3,
        NFTA_FLOWTABLE_FLAGS = 7,
    }
    /// `enum nft_flowtable_hook_attributes`
    u16 {
        NFTA_FLOWTABLE_HOOK_NUM = 1,
        NFTA_FLOWTABLE_HOOK_PRIORITY = 2,
        NFTA_FLOWTABLE_HOOK_DEVS = 3,
    }
    /// `enum nft_devices_attributes`
    u16 {
        NFTA_DEVICE_NAME = 1,
    }
    /// `enum nft_offload_attributes`
    u16 {
        NFTA_FLOW_TABLE_NAME = 1,
    }
    /// `enum nft_byteorder_ops`
    u32 {
        NFT_BYTEORDER_HTON = 1,
    }
    /// `enum nft_byteorder_attributes`
    u16 {
        NFTA_BYTEORDER_SREG = 1,
        NFTA_BYTEORDER_DREG = 2,
        NFTA_BYTEORDER_OP = 3,
        NFTA_BYTEORDER_LEN = 4,
        NFTA_BYTEORDER_SIZE = 5,
    }
    /// `enum nft_ng_attributes`
    u16 {
        NFTA_NG_DREG = 1,
        NFTA_NG_MODULUS = 2,
        NFTA_NG_TYPE = 3,
        NFTA_NG_OFFSET = 4,
    }
    /// `enum nft_ng_types`
    u32 {
        NFT_NG_RANDOM = 1,
    }
}
