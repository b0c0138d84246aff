/// Kernel interfaces that Swift cannot reach by itself. One header for each kernel subsystem; library headers
/// (liburing, libaio) are included only by the .c files.
#ifndef CLINUX_H
#define CLINUX_H
#include "clinux_app.h"
#include "clinux_checksum.h"
#include "clinux_files.h"
#include "clinux_fuse.h"
#include "clinux_net.h"
#include "clinux_probe.h"
#include "clinux_process.h"
#include "clinux_ring.h"
#endif
