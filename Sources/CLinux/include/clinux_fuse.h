#ifndef CLINUX_FUSE_H
#define CLINUX_FUSE_H
#include <stddef.h>
#include <stdint.h>
#endif
