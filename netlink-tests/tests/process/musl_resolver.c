/* The resolver of musl: prints each address of the name that is its argument, as Alpine's programs see them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **arguments) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = 0;
  char text[INET6_ADDRSTRLEN];
  if (count != 2)
    return 2;
  int error = getaddrinfo(arguments[1], 0, &hints, &found);
  if (error) {
    fprintf(stderr, "%s\n", gai_strerror(error));
    return 1;
  }
  for (; found; found = found->ai_next) {
    void *address = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
                                                : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
    puts(inet_ntop(found->ai_family, address, text, sizeof text));
  }
  return 0;
}
