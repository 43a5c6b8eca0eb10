/* A Vulkan driver that is SwiftShader until the file named by LOST_WHEN exists: from then on every submission to the
   device fails as on a GPU whose driver was reset. LOST_DRIVER is SwiftShader's library. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICE_LOST (-4) /* VK_ERROR_DEVICE_LOST */

typedef void *(*lookup)(void *, const char *);
typedef int32_t (*submission)(void *, uint32_t, const void *, uint64_t);

static lookup real_device_lookup;
static submission real_submit;

static void *driver(const char *name) {
  static void *library;
  if (!library) library = dlopen(getenv("LOST_DRIVER"), RTLD_NOW | RTLD_LOCAL);
  return library ? dlsym(library, name) : NULL;
}

static int32_t submit(void *queue, uint32_t count, const void *submits, uint64_t fence) {
  const char *when = getenv("LOST_WHEN");
  if (when && access(when, F_OK) == 0) return DEVICE_LOST;
  return real_submit(queue, count, submits, fence);
}

static void *device_lookup(void *device, const char *name) {
  void *found = real_device_lookup(device, name);
  if (found && strcmp(name, "vkQueueSubmit") == 0) {
    real_submit = (submission)found;
    return (void *)submit;
  }
  return found;
}

void *vk_icdGetInstanceProcAddr(void *instance, const char *name) {
  lookup real = (lookup)driver("vk_icdGetInstanceProcAddr");
  void *found = real ? real(instance, name) : NULL;
  if (found && strcmp(name, "vkGetDeviceProcAddr") == 0) {
    real_device_lookup = (lookup)found;
    return (void *)device_lookup;
  }
  return found;
}

void *vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
  lookup real = (lookup)driver("vk_icdGetPhysicalDeviceProcAddr");
  return real ? real(instance, name) : NULL;
}

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
  int32_t (*real)(uint32_t *) = (int32_t(*)(uint32_t *))driver("vk_icdNegotiateLoaderICDInterfaceVersion");
  return real ? real(version) : DEVICE_LOST;
}
